"""Direct preference optimisation: one update on pairs of a chosen and a rejected response."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from gptjax import dims
from gptjax.choices import check_numbers
from gptjax.losses.cross_entropy import row_logp
from gptjax.losses.dpo import DpoKind, check_dpo, dpo_loss
from gptjax.model_types import Model, RouterSums
from gptjax.train.accumulate import accumulated, totals
from gptjax.train.router import router_loss, router_metrics
from gptjax.train.update import advance
from gptjax.types import Metrics, Params, PreferenceBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """DPO's settings; beta as in the paper.

    beta: strength of the pull to the reference.  kind: sigmoid (DPO, cDPO), robust or ipo.
    label_smoothing: share of labels taken to be wrong (sigmoid, robust).
    length_averaged: log-ratios are divided by the response's tokens first (as some do with ipo).
    loss_chunks: pieces in which the logits are computed.
    """

    beta: float = 0.1
    kind: DpoKind = "sigmoid"
    label_smoothing: float = 0.0
    length_averaged: bool = False
    loss_chunks: int = 1

    def __post_init__(self) -> None:
        check_dpo(self.beta, self.kind, self.label_smoothing)
        check_numbers(self, "dpo", at_least_1=("loss_chunks",))


def response_logps(
    params: Params, frozen: Params, batch: PreferenceBatch, *, model: Model, loss_chunks: int = 1
) -> jax.Array:
    """f32[B, C], log-probability of each response, summed over its tokens (nats): end-of-turn in, prompt out.

    One forward pass over B x C rows, without dropout. What counts follows from the lengths, not from token ids.
    """
    return _response_logps(params, frozen, batch, model, loss_chunks)[0]


def _response_logps(
    params: Params, frozen: Params, batch: PreferenceBatch, model: Model, loss_chunks: int
) -> tuple[jax.Array, RouterSums | None]:
    batch_size, candidates, length = batch.tokens_BCT.shape
    rows, spec = batch_size * candidates, dims.act_spec("BT")
    tokens_BT, targets_BT = (
        jnp.reshape(x, (rows, length), out_sharding=spec) for x in (batch.tokens_BCT, batch.targets_BCT)
    )
    lengths_B = jnp.reshape(batch.lengths_BC, (rows,), out_sharding=dims.act_spec("B"))
    first_BC = jnp.broadcast_to(batch.prompt_lengths_B[:, None], batch.lengths_BC.shape)
    first_B = jnp.reshape(first_BC, (rows,), out_sharding=dims.act_spec("B"))
    index_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (rows, length), out_sharding=spec)
    segments_BT = (index_BT < lengths_B[:, None]).astype(jnp.int32)
    mask_BT = (index_BT >= first_B[:, None] - 1) & (index_BT < lengths_B[:, None] - 1)
    h_BTD, router = model.hidden(params, frozen, tokens_BT, segments_BT, index_BT)
    unembed = partial(model.unembed, model.gather_unembedding(params), frozen)
    logp_B = row_logp(unembed, h_BTD, targets_BT, mask_BT, chunks=loss_chunks)
    return jnp.reshape(logp_B, (batch_size, candidates), out_sharding=dims.act_spec("BC")), router


def dpo_sums(
    params: Params, frozen: Params, batch: PreferenceBatch, *, model: Model, config: DpoConfig
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(loss_sum, n_pairs, aux) of `dpo_loss`; a pair with an empty response does not count."""
    return _dpo_sums(params, frozen, batch, model, config)[0]


def _dpo_sums(params: Params, frozen: Params, batch: PreferenceBatch, model: Model, config: DpoConfig):
    """(what `dpo_sums` returns, the routers' sums)."""
    logp_BC, router = _response_logps(params, frozen, batch, model, config.loss_chunks)
    lengths_BC = _response_lengths(batch)
    sums = dpo_loss(
        logp_BC,
        batch.logp_ref_BC,
        jnp.all(lengths_BC > 0, axis=1),
        beta=config.beta,
        kind=config.kind,
        label_smoothing=config.label_smoothing,
        lengths_BC=lengths_BC if config.length_averaged else None,
    )
    return sums, router


def _response_lengths(batch: PreferenceBatch) -> jax.Array:
    return batch.lengths_BC - batch.prompt_lengths_B[:, None]


def dpo_step(
    state: TrainState,
    batch: PreferenceBatch,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: DpoConfig,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update; dropout is off, as in the pass that made the reference's log-probabilities.

    Args:
        state: params of `model`.
        batch: pairs with the reference's log-probabilities.
        config: DPO's settings.
        microbatches: pieces in which the gradient is computed.

    Source: Rafailov et al. 2023, arXiv:2305.18290.
    """

    rows, n_pairs = batch.lengths_BC.size, jnp.sum(jnp.all(_response_lengths(batch) > 0, axis=1))
    count = jnp.maximum(n_pairs, 1)

    def share(params, batch, number):
        del number
        (loss_sum, _, aux), router = _dpo_sums(params, state.frozen, batch, model, config)
        return loss_sum / count + router_loss(router, rows), (loss_sum, aux, router)

    grads, stacked = accumulated(share, state.params, batch, microbatches)
    loss_sum, aux, router = totals(stacked)
    metrics = router_metrics(router, rows) | {
        "dpo/loss": loss_sum / count,
        "dpo/pairs": n_pairs,
        "dpo/tokens": jnp.sum(batch.lengths_BC),
    }
    after, figures = advance(state, grads, optimizer, loss=loss_sum / count)
    return after, metrics | pair_means(n_pairs, aux) | figures


def pair_means(n_pairs: jax.Array, aux: dict[str, jax.Array]) -> Metrics:
    """The figures of `dpo_loss` over its pairs, by the names under which they are logged."""
    names = {
        "margin": "dpo/margin",
        "correct": "dpo/accuracy",
        "ties": "dpo/tie_fraction",
        "logp_chosen": "dpo/logp_chosen_nats",
        "logp_rejected": "dpo/logp_rejected_nats",
        "reward_chosen": "dpo/reward_chosen",
        "reward_rejected": "dpo/reward_rejected",
    }
    return {names[key]: total / jnp.maximum(n_pairs, 1) for key, total in aux.items()}
