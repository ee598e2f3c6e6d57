"""Talking to a trained model in a terminal."""

import argparse
import codecs
import json
import math
import sys
from collections.abc import Callable, Iterator

import jax

from gptjax.data.conversations import Message, render_prompt
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer
from gptjax.generate.engine import SamplingConfig
from gptjax.generate.stream import prompt_room, streamer
from gptjax.serve.model import ANSWERING, LoadedModel, load

_HELP = """\
Type a message and press Enter. Ctrl-C stops an answer, Ctrl-D leaves.
/help   this text
/reset  forget what was said
/quit   leave"""
_LONGEST = 96  # tokens of an answer, if nothing else is asked for
_NOT_SHOWN = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\ufffd")  # a model must not steer the terminal


def generate(args: argparse.Namespace) -> None:
    """Answer one prompt on stdout, as it is sampled; a pre-trained (lm) stage continues the text."""
    _sampling(args, _LONGEST)  # a mistake is named before the model is loaded
    loaded = load(args.run, args.stage)
    tokenizer = loaded.tokenizer
    if loaded.task not in ANSWERING:
        ids = [tokenizer.bos_id, *tokenizer.encode(args.prompt)]
    else:
        ids = render_prompt([{"role": "user", "content": args.prompt}], tokenizer)
    speaker = Speaker(loaded, _sampling(args, loaded.config.max_length // 2), args.seed)
    answer = speaker.answer(ids, 0, _discard if args.json else _write)
    if not args.json:
        _write("\n")
        return
    fields = {"stage": loaded.stage, "prompt": args.prompt, "answer": answer.text}
    print(json.dumps(fields | {"ended": answer.ended, "tokens": len(answer.tokens)}))


def chat(args: argparse.Namespace) -> None:
    """Read messages from stdin and answer each, until /quit or the end of the input."""
    _sampling(args, _LONGEST)  # a mistake is named before the model is loaded
    loaded = load(args.run, args.stage)
    if loaded.task not in ANSWERING:
        raise ValueError(
            f"stage {loaded.stage!r} was not taught to answer: continue a text with `gptjax generate`, "
            f"or choose a stage that was with --stage, one of {', '.join(ANSWERING)}"
        )
    conversation = Conversation(Speaker(loaded, _sampling(args, loaded.config.max_length // 2), args.seed))
    _notice(f"stage {loaded.stage} of {args.run}; /help lists commands")
    while (said := _ask()) not in (None, "/quit"):
        if said == "/help":
            print(_HELP)
        elif said == "/reset":
            conversation.history = []
            _notice("forgotten")
        elif said.startswith("/") and " " not in said and "/" not in said[1:]:
            _notice(f"unknown command {said}; /help lists them")
        elif said:
            _reply(conversation, said)


class Speaker:
    """A loaded model with its sampling, compiled as it is used.

    Attributes:
        loaded: the model.
        room: longest prompt (tokens) that leaves room for the longest answer.
    """

    def __init__(self, loaded: LoadedModel, sampling: SamplingConfig, seed: int) -> None:
        self.loaded = loaded
        self.room = prompt_room(loaded.config.max_length, sampling)
        self._seed = seed
        with jax.set_mesh(loaded.mesh):
            self._stream = streamer(
                loaded.model, loaded.params, sampling=sampling, end_id=loaded.tokenizer.end_id,
                max_length=loaded.config.max_length, pad_id=loaded.tokenizer.pad_id,
            )  # fmt: skip

    def answer(self, ids: list[int], turn: int, write: Callable[[str], None], *, stoppable: bool = False) -> Answer:
        """Speak the answer to a prompt through `write`; each turn has its own randomness."""
        with jax.set_mesh(self.loaded.mesh):
            key = jax.random.fold_in(jax.random.key(self._seed), turn)
            return speak(self._stream(ids, key), self.loaded.tokenizer, write, stoppable=stoppable)


class Conversation:
    """What was said so far, cut to what the model can read."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.history: list[Message] = []
        self._turn = 0

    def say(self, message: str, write: Callable[[str], None]) -> None:
        """Answer a message through `write`; Ctrl-C keeps the part of the answer that was given.

        Raises:
            ValueError: the message alone is too long; the conversation is as it was.
        """
        history, dropped = self._fitted({"role": "user", "content": message})
        if dropped:
            _notice(f"the conversation is too long: its oldest {'turn' if dropped == 1 else f'{dropped} turns'} went")
        ids = render_prompt(history, self.speaker.loaded.tokenizer)
        answer = self.speaker.answer(ids, self._turn, write, stoppable=True)
        self._turn += 1
        if answer.tokens:
            self.history = [*history, {"role": "assistant", "content": answer.text}]

    def _fitted(self, message: Message) -> tuple[list[Message], int]:
        """(history that ends with the message, turns left out to make it fit)."""
        tokenizer, room = self.speaker.loaded.tokenizer, self.speaker.room
        alone = len(render_prompt([message], tokenizer))
        if alone > room:
            raise ValueError(
                f"the message takes {alone} tokens, there is room for {room}: shorten it, or lower --max-tokens"
            )
        history = [*self.history, message]
        while len(render_prompt(history, tokenizer)) > room:
            history = history[2:]
        return history, (len(self.history) + 1 - len(history)) // 2


def speak(
    tokens: Iterator[int], tokenizer: Tokenizer, write: Callable[[str], None], *, stoppable: bool = False
) -> Answer:
    """Write text as its tokens come, never half a character; `stoppable`: Ctrl-C ends it here."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    given: list[int] = []
    try:
        for token in tokens:
            given.append(token)
            write(decoder.decode(tokenizer.decode_bytes([token])))
    except KeyboardInterrupt:
        if not stoppable:
            raise
    write(decoder.decode(b"", final=True))
    ended = bool(given) and given[-1] == tokenizer.end_id
    return Answer(text=tokenizer.decode(given), ended=ended, tokens=tuple(given))


def _reply(conversation: Conversation, said: str) -> None:
    try:
        conversation.say(said, _write)
    except ValueError as error:
        _notice(f"error: {error}")
    else:
        _write("\n")


def _ask() -> str | None:
    """The next line without the space around it, None at the end; a prompt is shown to people only."""
    people = sys.stdin.isatty()
    while True:
        try:
            return input("you> " if people else "").strip()
        except EOFError:
            if people:
                print()
            return None
        except KeyboardInterrupt:
            print()
            _notice("Ctrl-D or /quit leaves")


def _sampling(args: argparse.Namespace, most: int) -> SamplingConfig:
    """As asked for; answers of up to `most` tokens, and no more than usual, if it was not said."""
    if not math.isfinite(args.temperature):
        raise ValueError(f"--temperature must be finite, got {args.temperature}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must lie in 0..{2**32 - 1}, got {args.seed}")
    longest = min(_LONGEST, most) if args.max_tokens is None else args.max_tokens
    try:
        return SamplingConfig(max_new_tokens=longest, temperature=args.temperature, top_p=args.top_p)
    except ValueError as error:
        option = str(error).replace("sampling.max_new_tokens", "--max-tokens").replace("sampling.", "--")
        raise ValueError(option.replace("top_p", "top-p")) from None


def _write(text: str) -> None:
    sys.stdout.write(text.translate(_NOT_SHOWN) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _discard(text: str) -> None:
    del text


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
