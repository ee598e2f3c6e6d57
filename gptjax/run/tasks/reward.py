"""Reward modelling: ranked candidates -> a model that scores answers."""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.labeler import SimulatedLabeler
from gptjax.data.loader import batch_at, evaluation_batches
from gptjax.data.preferences import Comparison, read_preferences, reward_batch
from gptjax.data.python_questions import questions, unanswered_questions
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.ranking import length_only_accuracy, ordered_pairs, pair_accuracy, ranking_report
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.mesh import put
from gptjax.run.progress import status
from gptjax.run.task import Setup, Task
from gptjax.run.tasks.comparisons import permuted, simulated_comparisons, write_comparisons
from gptjax.run.tasks.upstream import check_model, inherited_tokenizer, load_params, sampler
from gptjax.train.reward import candidate_scores, reward_step
from gptjax.train.update import initial_state
from gptjax.types import RewardBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class RewardTask:
    """Rankings of answers to the same prompt.

    start_from: stage of the recipe, or folder of a trained stage, whose weights and tokenizer are taken; it also
    answers the questions when comparisons are simulated.
    comparisons: JSON lines of {"messages", "responses": [{"content", "ended"}], "ranks"}; None: candidates sampled from
    `start_from`, ranked by the simulated labeler.  heldout_comparisons: likewise, never trained on (None with own
    comparisons: the last tenth of them).
    train_prompts, heldout_prompts: how many questions are asked when comparisons are simulated.
    prompt_tokens, answer_tokens: P and R; a row has P + R tokens, longer ones are dropped and counted.
    labeler: the simulated labeler.  permute_labels: shuffle the ranks of each training prompt (a control run).
    """

    start_from: str = "sft"
    comparisons: Path | None = None
    heldout_comparisons: Path | None = None
    train_prompts: int = 1024
    heldout_prompts: int = 256
    prompt_tokens: int = 64
    answer_tokens: int = 48
    labeler: SimulatedLabeler = SimulatedLabeler()
    permute_labels: bool = False


def build(config: RewardTask, setup: Setup) -> Task:
    """The task, with its comparisons read or simulated."""
    upstream = setup.stage_folder(config.start_from)
    check_model(upstream, setup.model)
    tokenizer = inherited_tokenizer(upstream, setup)
    train, heldout = comparisons(config, setup, tokenizer, upstream)
    row_tokens = config.prompt_tokens + config.answer_tokens
    most = max(len(comparison.responses) for comparison in [*train, *heldout])
    rows, _ = reward_batch(train, tokenizer, row_tokens, candidates=most)
    heldout_rows, report = reward_batch(heldout, tokenizer, row_tokens, candidates=most)
    heldout = [heldout[index] for index in report.kept]
    model = scalar_model(setup.model)
    tx = optimizer(setup.optimizer, setup.steps, model.roles, model.letters)
    place = partial(put, mesh=setup.mesh)

    @jax.jit
    def score(params, batch):
        return candidate_scores(params, {}, batch, model=model)

    def scores(params, chosen: RewardBatch) -> np.ndarray:
        pieces = [np.asarray(score(params, place(b))) for b in evaluation_batches(chosen, setup.batch_size)]
        return np.concatenate(pieces)[: len(chosen.ranks_BC)]

    def start(state):
        trunk, _ = load_params(language_model(setup.model), upstream, setup.mesh)
        params = state.params | {"trunk": trunk}
        fresh = jax.jit(lambda params, key: _state(params, tx, jax.random.wrap_key_data(key)))
        return fresh(params, state.key)

    def evaluate(state):
        figures = ranking_report(scores(state.params, heldout_rows), heldout_rows.ranks_BC)
        return {f"eval/{name}": figures[name] for name in ("accuracy", "nll", "brier", "ece")}

    def finish(state):
        heldout_BC = scores(state.params, heldout_rows)
        found = ranking_report(heldout_BC, heldout_rows.ranks_BC)
        found |= _against_bayes(heldout_BC, heldout_rows, heldout, rows, tokenizer)
        bias = -float(np.mean(_demonstration_scores(scores(state.params, rows), rows, train, tokenizer, row_tokens)))
        extra = state.extra | {"reward_bias": jnp.full_like(state.extra["reward_bias"], bias)}
        return dataclasses.replace(state, extra=extra), found | {"reward_bias": bias}

    return Task(
        init=lambda key: _state(model.init(key), tx, jax.random.fold_in(key, 1)),
        start=start,
        data=lambda position: batch_at(rows, position, setup.batch_size, setup.seed),
        step=partial(reward_step, model=model, optimizer=tx),
        evaluate=evaluate,
        finish=finish,
        tokens="reward/tokens",
        loss="reward/loss_nats",
        flops_per_token=setup.model.train_flops_per_token(row_tokens),
        data_fingerprint=_fingerprint(rows),
    )


def comparisons(
    config: RewardTask, setup: Setup, tokenizer: Tokenizer, upstream: Path
) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held-out) comparisons: the user's own, or simulated once and kept in the stage's folder."""
    if config.comparisons is not None:
        train = list(read_preferences(config.comparisons))
        if config.heldout_comparisons is not None:
            return train, list(read_preferences(config.heldout_comparisons))
        cut = len(train) - max(1, len(train) // 10)
        if cut < 1:
            raise ValueError(f"{config.comparisons}: {len(train)} comparisons are too few to hold some out; give more")
        return train[:cut], train[cut:]
    paths = {split: setup.folder / "data" / f"{split}.jsonl" for split in ("train", "heldout")}
    if not all(path.exists() for path in paths.values()):
        _simulate(config, setup, tokenizer, upstream, paths)
    train, heldout = (list(read_preferences(path)) for path in paths.values())
    return (permuted(train, setup.seed) if config.permute_labels else train), heldout


def _simulate(config: RewardTask, setup: Setup, tokenizer: Tokenizer, upstream: Path, paths: dict[str, Path]) -> None:
    model = language_model(setup.model)
    params, _ = load_params(model, upstream, setup.mesh)
    draw = sampler(model, setup, tokenizer, SamplingConfig(max_new_tokens=config.answer_tokens))
    for number, (split, path) in enumerate(paths.items()):
        asked = questions("heldout") if split == "heldout" else [*questions("train"), *unanswered_questions()]
        rng = np.random.default_rng([setup.seed, number])
        most = config.train_prompts if split == "train" else config.heldout_prompts
        chosen = [asked[i] for i in sorted(rng.permutation(len(asked))[:most])]
        with status(f"sampling candidates for {len(chosen)} {split} prompts"):
            made = simulated_comparisons(
                chosen,
                tokenizer,
                lambda prompts, key: draw(params, prompts, key, 256),
                config.labeler,
                prompt_tokens=config.prompt_tokens,
                seed=2 * setup.seed + number,
            )
        write_comparisons(path, made)


def _state(params: Any, tx: Any, key: jax.Array) -> TrainState:
    return initial_state(params, tx, key, reward_gain=jnp.ones(()), reward_bias=jnp.zeros(()))


def _against_bayes(
    scores_BC: np.ndarray, rows: RewardBatch, heldout: list[Comparison], train_rows: RewardBatch, tokenizer: Tokenizer
) -> dict[str, float]:
    """Accuracy over pairs that the model wrote itself, beside the best possible and that of length alone."""
    shape = rows.ranks_BC.shape
    sampled_BC, gold_BC = np.zeros(shape, bool), np.zeros(shape)
    for row, comparison in enumerate(heldout):
        for column, response in enumerate(comparison.responses):
            sampled_BC[row, column] = response.extra.get("source") == "sampled"
            gold_BC[row, column] = response.extra.get("gold", 0.0)
    lengths = (train_rows.lengths_BC, train_rows.ranks_BC, rows.lengths_BC)
    everything = ordered_pairs(rows.ranks_BC)
    present = rows.ranks_BC > 0
    found = {
        "length_correlation": float(np.corrcoef(scores_BC[present], rows.lengths_BC[present])[0, 1]),
        "length_only_accuracy": length_only_accuracy(*lengths, everything),
    }
    pairs = ordered_pairs(rows.ranks_BC, sampled_BC)
    if len(pairs):
        found |= {
            "sampled_pairs": len(pairs),
            "sampled_pair_accuracy": pair_accuracy(scores_BC, pairs),
            "sampled_pair_bayes_accuracy": pair_accuracy(gold_BC, pairs),
            "length_only_accuracy": length_only_accuracy(*lengths, pairs),
        }
    return found


def _demonstration_scores(
    scores_BC: np.ndarray, rows: RewardBatch, train: list[Comparison], tokenizer: Tokenizer, row_tokens: int
) -> np.ndarray:
    """Scores of the true answers among the candidates, or of the best-ranked ones where there are none."""
    _, report = reward_batch(train, tokenizer, row_tokens)
    shown = np.zeros(rows.ranks_BC.shape, bool)
    for row, index in enumerate(report.kept):
        for column, response in enumerate(train[index].responses):
            shown[row, column] = response.extra.get("source") == "reference"
    return scores_BC[shown] if shown.any() else scores_BC[rows.ranks_BC == 1]


def _fingerprint(rows: RewardBatch) -> str:
    digest = hashlib.sha256()
    for values in vars(rows).values():
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
