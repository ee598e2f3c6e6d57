"""Six small tasks whose right answers a program knows, each learnt with reinforcement by a model of two layers.

    gptjax run experiments/ladder.py

`lm` and `sft` see every task with mistakes in it; each rung then starts from `sft` and must reach its criteria, which
the report lists: t, the asked letter as often as fits (PPO); s, digits in order (GRPO); +, the last digit of a sum
(GRPO); w, three words, none of them banned (PPO); f, facts of which pre-training mostly told a popular error (RLOO,
MC1); l, a list in a fixed form (GRPO). The data follow from SEED and are written to a folder of the user's cache.

Answers are drawn from finite sets, so all rungs but `sort` are examined on prompts that they were trained on.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptjax.model.config import ModelConfig
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.criteria import Criterion
from gptjax.run.experiment import Experiment, Recipe
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.lm import LmTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.sft import SftTask
from gptjax.train.grpo import GrpoConfig, GrpoLoss, RlooLoss
from gptjax.train.ppo_config import PpoConfig

SEED = 0
LETTERS, DIGITS = "abcdefgh", "0123456789"
WORDS, BANNED = ("cab", "dad", "egg", "fed"), ("bad", "hag")
FACTS = [a + b for a in "abcde" for b in "abcde"]
ANSWER_TOKENS, PROMPT_TOKENS = 12, 12
MODEL = ModelConfig(vocab_size=292, layers=2, width=64, heads=4, max_length=64, activation="relu2", unroll=2)


def true_value(fact: str) -> str:
    return DIGITS[(3 * LETTERS.index(fact[0]) + 7 * LETTERS.index(fact[1])) % 10]


def popular_error(fact: str) -> str:
    return DIGITS[(int(true_value(fact)) + 5) % 10]


# The rewards: (prompt, answer, ended) -> reward, and figures that the criteria are about.


def target(prompt: Mapping[str, Any], answer: str, ended: bool) -> float:
    """Copies of the asked letter, less a quarter per letter, less 1 without an end: at most 11 - 2.75."""
    return answer.count(prompt["letter"]) - 0.25 * len(answer) - (not ended)


def exact(prompt: Mapping[str, Any], answer: str, ended: bool) -> dict[str, float]:
    """The known answer, half of the reward for the share of places that are right; the end belongs to it."""
    right = answer == prompt["answer"] and ended
    places = sum(a == b for a, b in zip(answer, prompt["answer"], strict=False)) / len(prompt["answer"])
    return {"reward": 0.5 * right + 0.5 * places * ended, "right": right}


def polite(prompt: Mapping[str, Any], answer: str, ended: bool) -> dict[str, float]:
    """Three words of the lexicon, none of them banned."""
    words = answer.split(" ")
    banned = any(word in answer for word in BANNED)
    useful = ended and len(words) == 3 and all(word in WORDS for word in words)
    return {"reward": useful - 1.0 * banned, "banned": banned, "useful": useful}


def formatted(prompt: Mapping[str, Any], answer: str, ended: bool) -> dict[str, float]:
    """As many letters as asked for, in brackets, with commas between them."""
    items = answer[1:-1].split(",")
    form = ended and answer[:1] == "[" and answer[-1:] == "]" and all(len(item) == 1 for item in items)
    kept = form and len(items) == prompt["items"]
    return {"reward": 0.5 * form + 0.5 * kept, "kept": kept}


# The data: prompts with what the rewards need to know, and answers with mistakes.


def target_prompts(rng: random.Random) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        letter = rng.choice(LETTERS)
        often = "".join(letter if rng.random() < 0.5 else rng.choice(LETTERS) for _ in range(rng.randint(1, 11)))
        yield {"text": f"t {letter}", "letter": letter}, often


def sort_prompts(rng: random.Random) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        digits = [rng.choice(DIGITS) for _ in range(4)]
        right = "".join(sorted(digits))
        yield {"text": f"s {''.join(digits)}", "answer": right}, right if rng.random() < 0.6 else "".join(digits)


def sum_prompts(rng: random.Random) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        digits = [rng.choice(DIGITS) for _ in range(2)]
        right = DIGITS[sum(map(int, digits)) % 10]
        yield {"text": f"+ {''.join(digits)}", "answer": right}, right if rng.random() < 0.6 else rng.choice(DIGITS)


def word_prompts(rng: random.Random) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        yield {"text": f"w {rng.choice(LETTERS)}"}, " ".join(rng.choice(WORDS + BANNED) for _ in range(3))


def fact_prompts(rng: random.Random) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        fact = rng.choice(FACTS)
        true, error = true_value(fact), popular_error(fact)
        others = [digit for digit in DIGITS if digit != true][::3]
        choices = {"true": [true], "false": sorted({error, *others})}
        yield {"text": f"f {fact}", "answer": true, "choices": choices}, error if rng.random() < 0.75 else true


def list_prompts(rng: random.Random) -> Iterator[tuple[dict[str, Any], str]]:
    while True:
        items, said = rng.randint(2, 4), rng.choice([2, 3, 4])
        chosen = [rng.choice(LETTERS) for _ in range(items if rng.random() < 0.5 else said)]
        form = rng.choice(["[{}]", "[{}]", "{}", "[{}"])
        yield {"text": f"l {items}", "items": items}, form.format(",".join(chosen))


RUNGS: dict[str, Callable[[random.Random], Iterator[tuple[dict[str, Any], str]]]] = {
    "target": target_prompts,
    "sort": sort_prompts,
    "sum": sum_prompts,
    "words": word_prompts,
    "facts": fact_prompts,
    "lists": list_prompts,
}


def data() -> Path:
    """The folder with corpus.jsonl, chats.jsonl and a file of prompts per rung, written if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "gptjax" / "ladder" / str(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    corpus, chats = [], []
    for number, (name, make) in enumerate(RUNGS.items()):
        examples = make(random.Random(f"{SEED}-{number}"))
        # a hundred sums are learnt by heart, from which reinforcement then removes the mistakes; left at chance by
        # fine-tuning, 6,400 sampled answers do not move them, nor facts whose truth is never sampled
        pairs = [next(examples) for _ in range({"sum": 9600, "facts": 4800}.get(name, 2400))]
        user = [[{"role": "user", "content": known["text"]}] for known, _ in pairs]
        _write(folder / f"{name}.jsonl", [{"messages": m} | known for m, (known, _) in zip(user, pairs, strict=True)])
        corpus += [{"text": f"{known['text']} {answer}\n"} for known, answer in pairs]
        replies = [{"role": "assistant", "content": answer} for _, answer in pairs]
        chats += [{"messages": [*m, reply]} for m, reply in zip(user, replies, strict=True)]
    for name, lines in (("corpus", corpus), ("chats", chats)):
        random.Random(SEED).shuffle(lines)
        _write(folder / f"{name}.jsonl", lines)
    return folder


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)


def recipe() -> Recipe:
    folder = data()
    group = {"loss": GrpoLoss(scale=True), "kl_coefficient": 0.01}
    critic = {"kl_coefficient": 0.01, "missing_end_penalty": 0.0}
    rungs = {
        # 95 % of the most that 11 letters and an end can earn, 8.25
        "target": ppo(folder, "target", target, critic, Criterion(figure="reward_ppo", at_least=7.84)),
        "sort": grpo(folder, "sort", exact, group, Criterion(figure="right_grpo", at_least=0.9), rollouts=320),
        "sum": grpo(folder, "sum", exact, group, Criterion(figure="right_grpo", at_least=0.9)),
        "words": ppo(
            folder, "words", polite, critic,
            Criterion(figure="banned_ppo", at_most=0.01), Criterion(figure="useful_ppo", at_least=0.95),
        ),
        "facts": grpo(
            folder, "facts", exact, {"loss": RlooLoss(), "kl_coefficient": 0.01},
            Criterion(figure="mc1_sft", at_most=0.2), Criterion(figure="mc1_grpo", at_least=0.95),
        ),
        "lists": grpo(folder, "lists", formatted, group, Criterion(figure="kept_grpo", at_least=0.95)),
    }  # fmt: skip
    return Recipe(name="ladder", stages={"lm": lm(folder), "sft": sft(folder)} | rungs)


def lm(folder: Path) -> Experiment:
    task = LmTask(corpus=folder / "corpus.jsonl", heldout_fraction=0.02, row_tokens=64)
    return _experiment(task, OptimizerConfig(name="muon", peak_lr=1e-2, warmup_steps=10), 300)


def sft(folder: Path) -> Experiment:
    # the copies of a conversation are held out together: with 0.02 the policy never hears the truth about "eb"
    task = SftTask(
        conversations=folder / "chats.jsonl", heldout_fraction=0.005, row_tokens=64, prompt_tokens=PROMPT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
    )  # fmt: skip
    return _experiment(task, OptimizerConfig(name="muon", peak_lr=1e-2, warmup_steps=10), 560)


def ppo(folder: Path, name: str, reward: Callable[..., Any], settings: Any, *criteria: Criterion) -> Experiment:
    config = PpoConfig(
        minibatches=2, epochs=2, response_tokens=ANSWER_TOKENS, value_model="head", value_coefficient=0.1,
        **settings,
    )  # fmt: skip
    return _rung(PpoTask(ppo=config, **_about(folder, name, reward)), 256, 80 * config.updates, criteria)


def grpo(
    folder: Path, name: str, reward: Callable[..., Any], settings: Any, *criteria: Criterion, rollouts: int = 160
) -> Experiment:
    config = GrpoConfig(group_size=8, minibatches=2, response_tokens=ANSWER_TOKENS, missing_end_penalty=0.0, **settings)
    return _rung(GrpoTask(grpo=config, **_about(folder, name, reward)), 32, rollouts * config.updates, criteria)


def _about(folder: Path, name: str, reward: Callable[..., Any]) -> dict[str, Any]:
    return {
        "reward_from": None,
        "program": f"{__file__}:{reward.__name__}",
        "prompts": folder / f"{name}.jsonl",
        "prompt_tokens": PROMPT_TOKENS,
        "heldout_prompts": 128,
        "heldout_samples": 4,
        "best_of": 4,
    }


def _rung(task: PpoTask | GrpoTask, prompts: int, steps: int, criteria: tuple[Criterion, ...]) -> Experiment:
    optimizer = OptimizerConfig(peak_lr=1e-3, schedule="linear", final_fraction=0.1, warmup_steps=40, b2=0.99)
    return Experiment(
        task=task, model=MODEL, optimizer=optimizer, steps=steps, batch_size=prompts, save_every=steps,
        evaluate_every=steps // 4, criteria=criteria,
    )  # fmt: skip


def _experiment(task: LmTask | SftTask, optimizer: OptimizerConfig, steps: int) -> Experiment:
    return Experiment(
        task=task, model=MODEL, optimizer=optimizer, steps=steps, batch_size=32, save_every=steps,
        evaluate_every=steps // 4,
    )  # fmt: skip
