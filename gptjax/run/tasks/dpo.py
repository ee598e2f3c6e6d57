"""DPO: ranked answers -> a policy that prefers the better ones, without a reward model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.choices import check_numbers
from gptjax.data.loader import batch_at, evaluation_batches, own_rows
from gptjax.data.pairs import Pairs, pair_ids, preference_batch, with_reference
from gptjax.data.preferences import Comparison, read_preferences
from gptjax.files import replacing
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import scalar_model
from gptjax.model_types import Model
from gptjax.run.hosts import first_says, on_first
from gptjax.run.mesh import fetch, put
from gptjax.run.progress import status
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.asked import Asked, PolicyTask, asked_prompts
from gptjax.run.tasks.comparisons import own_comparisons
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.outlines import trained_model, untrained
from gptjax.run.tasks.upstream import inherited, load_policy, reward_model, started
from gptjax.train.dpo import DpoConfig, dpo_step, dpo_sums, pair_means, response_logps
from gptjax.types import PreferenceBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class DpoTask(PolicyTask):
    """Direct preference optimisation on rankings of answers to the same prompt.

    reward_from: stage or folder of a reward model: its simulated comparisons are learnt from where there are no others,
    and its scores are reported; None: neither.
    comparisons: JSON lines of {"messages", "responses": [{"content", "ended"}], "ranks"}.  heldout_comparisons:
    likewise, never trained on (None: the last tenth of `comparisons`).
    pairs: all pairs of a comparison whose ranks differ, or its best against its worst.
    answer_tokens: R; a row has P + R tokens, pairs with a longer one are dropped and counted.
    dpo: the objective's settings.
    """

    comparisons: Path | None = None
    heldout_comparisons: Path | None = None
    pairs: Pairs = "all"
    answer_tokens: int = 48
    dpo: DpoConfig = DpoConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "task", at_least_1=("answer_tokens",))
        if self.comparisons is None and self.reward_from is None:
            raise ValueError("task.comparisons or task.reward_from must be given: there is nothing to learn from")


def build(config: DpoTask, setup: Setup) -> Task:
    """The task, with its pairs rendered and what the reference thinks of them."""
    upstream, tokenizer = inherited(config.policy_from, setup)
    train, heldout = _comparisons(config, setup)
    made, (model, tx) = outline(config, setup), trained_model(setup)
    reference = load_policy(model, upstream, setup.mesh)
    logps = jax.jit(partial(response_logps, model=model, loss_chunks=config.dpo.loss_chunks))
    place = partial(put, mesh=setup.mesh)
    row_tokens = config.prompt_tokens + config.answer_tokens

    def referenced(comparisons: Sequence[Comparison], split: str):
        rows, report = preference_batch(comparisons, tokenizer, row_tokens, pairs=config.pairs)
        path = setup.folder / "data" / f"reference_{split}.npz"
        own = partial(own_rows, share=setup.share)
        return reference_rows(
            rows, path, lambda b: fetch(logps(reference, {}, place(own(b)))), setup.batch_size
        ), report

    with status("reference log-probabilities"):
        rows, report = referenced(train, "train")
        heldout_rows, _ = referenced(heldout, "heldout")
    heldout_figures = _heldout_figures(config, setup, model, heldout_rows)
    examination = _examination(config, setup, tokenizer, model, reference, heldout)
    key = jax.random.key(setup.seed)

    def evaluate(state):
        figures = {f"eval/{name}": value for name, value in heldout_figures(state).items()}
        return figures if examination is None else figures | examination.brief(state.params, key)

    def finish(state):
        about = {"pairs": len(report.kept), "tied_comparisons": report.tied, "dropped_pairs": report.dropped}
        found = heldout_figures(state) | about
        return state, found if examination is None else found | examination.full(state.params, key)

    return Task(
        init=made.init,
        start=started(model, tx, setup, config.policy_from),
        data=lambda position: batch_at(rows, position, setup.batch_size, setup.seed, setup.share),
        step=made.step,
        evaluate=evaluate,
        finish=finish,
        tokens="dpo/tokens",
        loss="dpo/loss",
        flops_per_token=setup.model.train_flops_per_token(row_tokens),
        data_fingerprint=f"{pairs_fingerprint(rows)}-{tokenizer.fingerprint[:16]}",
    )


def outline(config: DpoTask, setup: Setup) -> Outline:
    """The task without its pairs."""
    model, tx = trained_model(setup)
    pairs, row_tokens = setup.batch_size, config.prompt_tokens + config.answer_tokens
    tokens_BCT = jax.ShapeDtypeStruct((pairs, 2, row_tokens), jnp.int32)
    tokens = 2 * pairs * row_tokens
    return Outline(
        init=untrained(model, tx),
        step=partial(dpo_step, model=model, optimizer=tx, config=config.dpo),
        batch=PreferenceBatch(
            tokens_BCT=tokens_BCT,
            targets_BCT=tokens_BCT,
            lengths_BC=jax.ShapeDtypeStruct((pairs, 2), jnp.int32),
            prompt_lengths_B=jax.ShapeDtypeStruct((pairs,), jnp.int32),
            logp_ref_BC=jax.ShapeDtypeStruct((pairs, 2), jnp.float32),
        ),
        step_tokens=tokens,
        step_flops=tokens * setup.model.train_flops_per_token(row_tokens),
    )


def reference_rows(
    rows: PreferenceBatch, path: Path, logps: Callable[[PreferenceBatch], Any], batch_size: int
) -> PreferenceBatch:
    """The rows with the reference's log-probabilities, computed once and kept under the pairs' ids in `path`.

    Args:
        rows: pairs on the host.
        path: .npz file; read if it is there, so that a resume continues with the very same numbers.
        logps: host batch, whole on every host -> log-probabilities f32[B, 2] under the reference, likewise.
        batch_size: pairs at a time.
    """
    if not first_says(path.exists()):
        filled = [np.asarray(logps(batch)) for batch in evaluation_batches(rows, batch_size)]
        on_first(partial(_write_reference, path, rows, np.concatenate(filled)))
    with np.load(path) as stored:
        return with_reference(rows, dict(zip(stored["ids"].tolist(), stored["logp_BC"], strict=True)))


def pairs_fingerprint(rows: PreferenceBatch) -> str:
    """Of the pairs alone: what the reference thinks of them is kept beside them."""
    return hashlib.sha256("".join(pair_ids(rows)).encode()).hexdigest()[:16]


def _write_reference(path: Path, rows: PreferenceBatch, logp_BC: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, ids=np.array(pair_ids(rows)), logp_BC=logp_BC[: len(rows.lengths_BC)])


def _comparisons(config: DpoTask, setup: Setup) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held-out): the user's own, or those that the reward stage simulated."""
    if config.comparisons is not None:
        return own_comparisons(read_preferences, config.comparisons, config.heldout_comparisons)
    assert config.reward_from is not None  # __post_init__ saw to it
    folder = setup.stage_folder(config.reward_from) / "data"
    paths = [folder / f"{split}.jsonl" for split in ("train", "heldout")]
    if not all(path.exists() for path in paths):
        raise ValueError(f"{folder} holds no simulated comparisons: give task.comparisons")
    train, heldout = (list(read_preferences(path)) for path in paths)
    return train, heldout


def _heldout_figures(
    config: DpoTask, setup: Setup, model: Model, rows: PreferenceBatch
) -> Callable[[TrainState], dict[str, float]]:
    """What gives the objective's figures on held-out pairs."""
    sums = jax.jit(partial(dpo_sums, model=model, config=config.dpo))

    def figures(state):
        batches = evaluation_batches(rows, setup.batch_size, setup.share)
        found = (sums(state.params, state.frozen, put(batch, setup.mesh)) for batch in batches)
        loss, pairs, aux = jax.tree.map(lambda *x: float(np.sum(x)), *found)
        means = {name.removeprefix("dpo/"): float(value) for name, value in pair_means(pairs, aux).items()}
        return {"loss": loss / max(pairs, 1)} | means

    return figures


def _examination(
    config: DpoTask, setup: Setup, tokenizer: Any, model: Any, reference: Any, heldout: Sequence[Comparison]
) -> Examination | None:
    if config.reward_from is None:
        return None
    scalar = scalar_model(setup.model)
    frozen_models = {"reference": reference} | reward_model(config.reward_from, setup)
    own = [Asked(comparison.messages, None, {}) for comparison in heldout]
    asked = asked_prompts(None)[1] if config.comparisons is None else own
    sampling = SamplingConfig(max_new_tokens=config.answer_tokens)
    return Examination(config, setup, tokenizer, model, scalar, frozen_models, asked, sampling, name="dpo")
