"""Talking to a trained model in a terminal."""

import argparse
import json
import sys
from collections.abc import Callable

import jax
import numpy as np

from gptjax.data.conversations import Message, render_prompt
from gptjax.eval.answers import Answer
from gptjax.generate.engine import SamplingConfig
from gptjax.generate.engine import generate as sample
from gptjax.run.mesh import put
from gptjax.run.start import start_jax
from gptjax.serve.model import LoadedModel, load
from gptjax.types import PromptBatch


def generate(args: argparse.Namespace) -> None:
    """Answer one prompt on stdout; an unaligned (lm) stage continues the text."""
    start_jax()
    loaded = load(args.run, args.stage)
    if loaded.task == "lm":
        ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(args.prompt)]
    else:
        ids = render_prompt([{"role": "user", "content": args.prompt}], loaded.tokenizer)
    answer = answerer(loaded, args)(ids, 0)
    if not args.json:
        print(answer.text)
        return
    fields = {"stage": loaded.stage, "prompt": args.prompt, "answer": answer.text}
    print(json.dumps(fields | {"ended": answer.ended, "tokens": len(answer.tokens)}))


def chat(args: argparse.Namespace) -> None:
    """Read messages from stdin and answer each until /quit or the end of the input; /reset forgets what was said."""
    start_jax()
    loaded = load(args.run, args.stage)
    if loaded.task == "lm":
        raise ValueError(f"stage {loaded.stage} was not taught to answer: use `gptjax generate`, or another --stage")
    answer = answerer(loaded, args)
    print(f"stage {loaded.stage} of {args.run}; /reset forgets, /quit leaves", file=sys.stderr)
    history: list[Message] = []
    turn = 0
    while True:
        try:
            said = input("you> ").strip()
        except EOFError:
            return
        if said == "/quit":
            return
        if said == "/reset":
            history = []
        elif said:
            history.append({"role": "user", "content": said})
            room = loaded.config.max_length - args.max_tokens
            while len(history) > 1 and len(render_prompt(history, loaded.tokenizer)) > room:
                history = history[2:]
            found = answer(render_prompt(history, loaded.tokenizer), turn)
            history.append({"role": "assistant", "content": found.text})
            turn += 1
            print(found.text, flush=True)


def answerer(loaded: LoadedModel, args: argparse.Namespace) -> Callable[[list[int], int], Answer]:
    """(prompt ids, turn) -> answer; compiled once for each prompt length rounded up to a power of two."""
    tokenizer = loaded.tokenizer
    sampling = SamplingConfig(max_new_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p)
    run = jax.jit(
        lambda params, prompts, key: sample(
            loaded.model, params, {}, prompts, key, sampling=sampling, end_id=tokenizer.end_id
        )
    )

    def answer(ids: list[int], turn: int) -> Answer:
        room = loaded.config.max_length - args.max_tokens
        if len(ids) > room:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model has room for {room} before the answer")
        columns = min(room, 1 << (len(ids) - 1).bit_length())
        padded = [tokenizer.pad_id] * (columns - len(ids)) + ids
        batch = PromptBatch(tokens_BP=np.array([padded], np.int32), lengths_B=np.array([len(ids)], np.int32))
        with jax.set_mesh(loaded.mesh):
            key = jax.random.fold_in(jax.random.key(args.seed), turn)
            tokens_BR, mask_BR = map(np.asarray, run(loaded.params, put(batch, loaded.mesh), key))
        given = tokens_BR[0][mask_BR[0]].tolist()
        ended = bool(given) and given[-1] == tokenizer.end_id
        text = tokenizer.decode(given[:-1] if ended else given)
        return Answer(text=text, ended=ended, tokens=tuple(given))

    return answer
