"""Reward modelling: ranked candidates -> a model that scores answers."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.choices import check_numbers
from gptjax.data.candidates import epoch_rows, packed, rows_needed
from gptjax.data.labeler import SimulatedLabeler
from gptjax.data.loader import batch_at, evaluation_batches, fingerprint
from gptjax.data.preferences import Comparison, read_preferences, reward_batch
from gptjax.data.prompts import prompt_batch
from gptjax.data.python_questions import questions, unanswered_questions
from gptjax.data.ratings import RatedResponses, rating_batch, read_ratings
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.model_types import ScalarModel
from gptjax.run.hosts import first_says, on_first
from gptjax.run.mesh import batch_rows, fetch, put
from gptjax.run.progress import status
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.comparisons import MOST, own_comparisons, permuted, simulated_comparisons, write_comparisons
from gptjax.run.tasks.outlines import first_state, trained_model
from gptjax.run.tasks.reward_figures import Judged, Rows, brief, data_figures, demonstrations, full, sampled_rows
from gptjax.run.tasks.sampler import sampler
from gptjax.run.tasks.upstream import inherited, load_policy, load_trunk
from gptjax.train.normalise import zero_mean, zero_mean_unit_std
from gptjax.train.reward import RewardConfig, candidate_scores, reward_step
from gptjax.types import PackedCandidates, Params, RatingBatch, RewardBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class RewardTask:
    """Rankings of answers to the same prompt.

    start_from: stage of the recipe, or folder of a trained stage, whose weights and tokenizer are taken; it also
    answers the questions when comparisons are simulated.
    comparisons: JSON lines of {"messages", "responses": [{"content", "ended"}], "ranks"}; None: candidates sampled from
    `start_from`, ranked by the simulated labeler.  heldout_comparisons: likewise, never trained on (None with own
    comparisons: the last tenth of them).
    With reward.objective "rating" these files hold {"messages", "responses": [{"content", "rating": 1 to 7}]} instead.
    train_prompts, heldout_prompts: how many questions are asked when comparisons are simulated.
    prompt_tokens, answer_tokens: P and R; a prompt with a candidate of more than P + R tokens is dropped and counted.
    row_tokens: of a packed row, which holds several candidates; None: P + R.
    reward: the objective, its options, and the normalisation of the scores.
    normalisation_prompts: training prompts whose demonstrations set the bias of the scores; with normalisation
    "reference", `start_from` answers them once each, which sets bias and gain.
    labeler: the simulated labeler.  permute_labels: shuffle the ranks of each training prompt (a control run).
    """

    start_from: str = "sft"
    comparisons: Path | None = None
    heldout_comparisons: Path | None = None
    train_prompts: int = 1024
    heldout_prompts: int = 256
    prompt_tokens: int = 64
    answer_tokens: int = 48
    row_tokens: int | None = None
    reward: RewardConfig = RewardConfig()
    normalisation_prompts: int = 256
    labeler: SimulatedLabeler = SimulatedLabeler()
    permute_labels: bool = False

    def __post_init__(self) -> None:
        sizes = ("train_prompts", "heldout_prompts", "prompt_tokens", "answer_tokens")
        check_numbers(self, "task", at_least_1=sizes)
        if self.reward.objective == "rating" and self.comparisons is None:
            raise ValueError("reward.objective 'rating' needs a file of ratings: set task.comparisons")
        if self.reward.objective == "rating" and self.permute_labels:
            raise ValueError("task.permute_labels shuffles ranks, which reward.objective 'rating' does not read")
        longest = self.prompt_tokens + self.answer_tokens
        if self.row_tokens is not None and self.row_tokens < longest:
            raise ValueError(
                f"task.row_tokens {self.row_tokens} is below task.prompt_tokens {self.prompt_tokens} + "
                f"task.answer_tokens {self.answer_tokens}: a candidate must fit in a row"
            )
        if self.normalisation_prompts < 2:
            raise ValueError(f"task.normalisation_prompts must be at least 2, got {self.normalisation_prompts}")


def build(config: RewardTask, setup: Setup) -> Task:
    """The task, with its comparisons read or simulated."""
    upstream, tokenizer = inherited(config.start_from, setup)
    longest = config.prompt_tokens + config.answer_tokens
    train, heldout = comparisons(config, setup, tokenizer, upstream)
    most = max(len(comparison.responses) for comparison in [*train, *heldout])
    rows, train, train_figures = _rendered("training", train, tokenizer, longest, most)
    heldout_rows, heldout, heldout_figures = _rendered("held-out", heldout, tokenizer, longest, most)
    row_tokens = config.row_tokens or longest
    pack = partial(packed, row_tokens=row_tokens, multiple=batch_rows(setup.mesh), share=setup.share)
    train_rows = epoch_rows(rows, setup.batch_size, setup.seed, row_tokens, microbatches=setup.microbatches)
    pack_train = partial(pack, rows=train_rows, microbatches=setup.microbatches)
    made, (model, tx) = outline(config, setup), trained_model(setup, scalar_model)
    scores = _scorer(model, setup, pack)

    def begin(trunk, key):
        return _state(model.init(key) | {"trunk": trunk}, tx, key)

    def start(key):
        trunk = load_trunk(setup, upstream)
        return jax.jit(begin, donate_argnums=0)(trunk, key)

    def evaluate(state):
        found = brief(scores(state.params, heldout_rows), heldout_rows, heldout)
        return {f"eval/{name}": value for name, value in found.items()}

    def normalisation(params) -> tuple[float, float]:
        if config.reward.normalisation == "reference":
            sampled = _reference_samples(config, setup, tokenizer, upstream, train)
            return zero_mean_unit_std(scores(params, sampled))
        shown_BC = demonstrations(rows, train)
        some = np.flatnonzero(shown_BC.any(axis=1))[: config.normalisation_prompts]
        return zero_mean(scores(params, jax.tree.map(lambda x: x[some], rows))[shown_BC[some]])

    def finish(state):
        found = full(scores(state.params, heldout_rows), heldout_rows, heldout, rows, train)
        norm = dict(zip(("reward_gain", "reward_bias"), normalisation(state.params), strict=True))
        extra = {name: jnp.full_like(state.extra[name], value) for name, value in norm.items()}
        data = {"training_data": train_figures, "heldout_data": heldout_figures}
        return dataclasses.replace(state, extra=state.extra | extra), found | norm | data

    return Task(
        init=made.init,
        start=start,
        data=lambda position: pack_train(batch_at(rows, position, setup.batch_size, setup.seed)),
        step=made.step,
        evaluate=evaluate,
        finish=finish,
        tokens="reward/tokens",
        loss="reward/loss",
        flops_per_token=setup.model.train_flops_per_token(row_tokens, scalar=True),
        data_fingerprint=fingerprint(rows),
    )


def outline(config: RewardTask, setup: Setup) -> Outline:
    """The task without its comparisons: as many candidates as simulated ones have, all as long as they may be."""
    model, tx = trained_model(setup, scalar_model)
    longest, candidates = config.prompt_tokens + config.answer_tokens, setup.batch_size * MOST
    row_tokens = config.row_tokens or longest
    multiple = batch_rows(setup.mesh) * setup.microbatches
    n_rows = -(-candidates // (row_tokens // longest * multiple)) * multiple
    rows_BT = jax.ShapeDtypeStruct((n_rows, row_tokens), jnp.int32)
    counts_BC, scores_BC = (jax.ShapeDtypeStruct((setup.batch_size, MOST), dtype) for dtype in (jnp.int32, jnp.float32))
    about: dict[str, Any] = {"tokens_BCT": None, "lengths_BC": counts_BC}
    if config.reward.objective == "rating":
        judged = RatingBatch(**about, ratings_BC=scores_BC, weights_BC=scores_BC)
    else:
        judged = RewardBatch(**about, ranks_BC=counts_BC)
    batch = PackedCandidates(
        tokens_BT=rows_BT, segments_BT=rows_BT, positions_BT=rows_BT, last_BC=counts_BC, judged=judged
    )
    tokens = n_rows * row_tokens
    return Outline(
        init=lambda key: _state(model.init(key), tx, key),
        step=partial(reward_step, model=model, optimizer=tx, config=config.reward),
        batch=batch,
        step_tokens=tokens,
        step_flops=tokens * setup.model.train_flops_per_token(row_tokens, scalar=True),
    )


def comparisons(
    config: RewardTask, setup: Setup, tokenizer: Tokenizer, upstream: Path
) -> tuple[list[Judged], list[Judged]]:
    """(training, held-out) comparisons: the user's own, or simulated once and kept in the stage's folder."""
    if config.comparisons is not None:
        read = read_ratings if config.reward.objective == "rating" else read_preferences
        return own_comparisons(read, config.comparisons, config.heldout_comparisons)
    paths = {split: setup.folder / "data" / f"{split}.jsonl" for split in ("train", "heldout")}
    if not first_says(all(path.exists() for path in paths.values())):
        _simulate(config, setup, tokenizer, upstream, paths)
    train, heldout = (list(read_preferences(path)) for path in paths.values())
    return list[Judged](permuted(train, setup.seed) if config.permute_labels else train), list[Judged](heldout)


def _scorer(
    model: ScalarModel, setup: Setup, pack: "partial[PackedCandidates]"
) -> Callable[[Params, Rows], np.ndarray]:
    """(params, rows) -> f32[B, C], the score of every candidate; `pack` still lacks the number of rows."""

    @jax.jit
    def score(params, batch):
        return candidate_scores(params, {}, batch, model=model)

    def scores(params, chosen):
        batches = list(evaluation_batches(chosen, setup.batch_size))
        most = max(rows_needed(batch.lengths_BC, pack.keywords["row_tokens"]) for batch in batches)
        pieces = [fetch(score(params, put(pack(batch, rows=most), setup.mesh))) for batch in batches]
        return np.concatenate(pieces)[: len(chosen.lengths_BC)]

    return scores


def _rendered(
    split: str, given: list[Judged], tokenizer: Tokenizer, row_tokens: int, candidates: int
) -> tuple[Rows, list[Judged], dict[str, int]]:
    """(rows, what they render, what became of the split)."""
    ranked = [judged for judged in given if isinstance(judged, Comparison)]
    rated = [judged for judged in given if isinstance(judged, RatedResponses)]
    rows: Rows
    if rated:
        rows, report = rating_batch(rated, tokenizer, row_tokens, candidates=candidates)
    else:
        rows, report = reward_batch(ranked, tokenizer, row_tokens, candidates=candidates)
    kept = [given[index] for index in report.kept]
    return rows, kept, data_figures(split, rows, kept, report)


def _reference_samples(
    config: RewardTask, setup: Setup, tokenizer: Tokenizer, upstream: Path, train: list[Judged]
) -> Rows:
    """Answers of the policy that training started from to some of the training prompts."""
    asked = [judged.messages for judged in train][: config.normalisation_prompts]
    prompts, _ = prompt_batch(asked, tokenizer, config.prompt_tokens)
    policy = language_model(setup.model)
    params = load_policy(policy, upstream, setup.mesh)
    draw = sampler(policy, setup, tokenizer, SamplingConfig(max_new_tokens=config.answer_tokens))
    answers = draw(params, prompts, jax.random.key(setup.seed), setup.batch_size)
    return sampled_rows(prompts, answers)


def _simulate(config: RewardTask, setup: Setup, tokenizer: Tokenizer, upstream: Path, paths: dict[str, Path]) -> None:
    model = language_model(setup.model)
    params = load_policy(model, upstream, setup.mesh)
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
        on_first(partial(write_comparisons, path, made))


def _state(params: Any, tx: Any, key: jax.Array) -> TrainState:
    return first_state(params, tx, key, reward_gain=jnp.ones(()), reward_bias=jnp.zeros(()))
