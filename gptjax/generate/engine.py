"""Sampling: prefill the prompts, then one token at a time with a cache, inside jit."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from gptjax import dims
from gptjax.choices import check_numbers
from gptjax.model_types import Cache, Model
from gptjax.nn.sampling import sample, token_log_probability
from gptjax.types import Params, PromptBatch


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """temperature 0 takes the most likely token; top_k 0 and top_p 1 keep the whole distribution.

    max_new_tokens: longest response, end-of-turn token included.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "sampling", at_least_1=("max_new_tokens",), not_negative=("temperature", "top_k"))
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"sampling.top_p must lie in (0, 1], got {self.top_p}")


def prompt_layout(lengths_B: jax.Array, columns: int) -> tuple[jax.Array, jax.Array]:
    """(segments_BP, positions_BP) of left-padded prompts: i32, segment 1 on real tokens, positions from 0."""
    column_BP = jnp.arange(columns, dtype=jnp.int32)[None]
    start_B1 = columns - lengths_B[:, None]
    return (column_BP >= start_B1).astype(jnp.int32), jnp.maximum(column_BP - start_B1, 0)


def prefilled(
    model: Model, params: Params, frozen: Params, prompts: PromptBatch, *, slots: int
) -> tuple[Cache, jax.Array, jax.Array]:
    """What decoding starts from: cache with `slots` positions, last hidden state f[B, 1, D], segments i32[B, S]."""
    columns = prompts.tokens_BP.shape[1]
    segments_BP, positions_BP = prompt_layout(prompts.lengths_B, columns)
    spec = dims.act_spec("BT")
    tokens_BT, segments_BT, positions_BT = (reshard(x, spec) for x in (prompts.tokens_BP, segments_BP, positions_BP))
    cache, h_BTD = model.prefill(params, frozen, tokens_BT, segments_BT, positions_BT, slots=slots)
    segments_BS = reshard(jnp.pad(segments_BP, ((0, 0), (0, slots - columns))), dims.act_spec("BS"))
    return cache, reshard(h_BTD, dims.act_spec("BTD", decoding=True))[:, -1:], segments_BS


def drawn(
    model: Model, params: Params, frozen: Params, h_BTD: jax.Array, key: jax.Array, sampling: SamplingConfig
) -> jax.Array:
    """The next token i32[B] of each row from its last hidden state (T = 1)."""
    return _sampled(next_logits(model, params, frozen, h_BTD), key, sampling)


def next_logits(model: Model, params: Params, frozen: Params, h_BTD: jax.Array) -> jax.Array:
    """f32[B, V] from the last hidden state of each row (T = 1)."""
    return model.unembed(params, frozen, h_BTD, decoding=True)[:, 0]


def _sampled(logits_BV: jax.Array, key: jax.Array, sampling: SamplingConfig) -> jax.Array:
    return sample(logits_BV, key, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)


def generate(
    model: Model,
    params: Params,
    frozen: Params,
    prompts: PromptBatch,
    key: jax.Array,
    *,
    sampling: SamplingConfig,
    end_id: int,
    index_B: jax.Array | None = None,
    keep_logp: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Sample a response to each prompt; stops early once every row has ended.

    Args:
        model: the record of pure functions.
        params: its parameters.
        frozen: parameters that are not trained.
        prompts: left-padded prompts.
        key: PRNG key; token r of every row is drawn from fold_in(key, r).
        sampling: temperature, truncation, longest response.
        end_id: the token that ends a response.
        index_B: i32[B], the prompt that each response answers; None: each one once. A prompt is prefilled once, however
            many answers it gets.
        keep_logp: return the third array, which training asks for.

    Returns:
        (tokens_BR, mask_BR, logp_BR): i32, bool and f32, [B, max_new_tokens]; the mask is true up to and including
        `end_id`, all true for a response that did not end; tokens are 0 where it is false; logp_BR (nats) is of each
        token by the logits that it was drawn from, None unless it was asked for.

    Raises:
        ValueError: log-probabilities with temperature 0, top-k or top-p: the tokens would not come from the
            distribution that training knows.
    """
    if keep_logp and (sampling.temperature == 0.0 or sampling.top_k or sampling.top_p < 1.0):
        raise ValueError(
            "training needs responses from the whole distribution: sampling.temperature above 0, top_k 0 and top_p 1, "
            f"got {sampling.temperature}, {sampling.top_k} and {sampling.top_p}"
        )
    columns, longest = prompts.tokens_BP.shape[1], sampling.max_new_tokens
    params = model.gather(params)
    cache, h_BTD, segments_BS = prefilled(model, params, frozen, prompts, slots=columns + longest)
    lengths_B = prompts.lengths_B
    if index_B is not None:
        cache, h_BTD, segments_BS, lengths_B = _taken(index_B, cache, h_BTD, segments_BS, lengths_B)

    def unfinished(carry):
        r, _, _, alive_B, *_ = carry
        return (r < longest) & jnp.any(alive_B)

    def body(carry):
        r, cache, h_BTD, alive_B, tokens_BR, mask_BR, logp_BR, segments_BS = carry
        logits_BV = next_logits(model, params, frozen, h_BTD)
        drawn_B = _sampled(logits_BV, jax.random.fold_in(key, r), sampling)
        token_B = jnp.where(alive_B, drawn_B, 0)
        tokens_BR, mask_BR = _with_column(tokens_BR, token_B, r), _with_column(mask_BR, alive_B, r)
        if logp_BR is not None:
            logp_B = token_log_probability(logits_BV, drawn_B, temperature=sampling.temperature)
            logp_BR = _with_column(logp_BR, logp_B, r)
        slot = columns + r
        segments_BS = _with_column(segments_BS, alive_B.astype(jnp.int32), slot)
        position_BT = (lengths_B + r)[:, None]
        cache, h_BTD = model.decode(params, frozen, cache, token_B[:, None], segments_BS, position_BT, slot)
        return r + 1, cache, h_BTD, alive_B & (token_B != end_id), tokens_BR, mask_BR, logp_BR, segments_BS

    logits = jax.eval_shape(lambda: next_logits(model, params, frozen, h_BTD))
    none_yet = _nothing_drawn(lengths_B.shape[0], longest, logits.dtype if keep_logp else None)
    start = (jnp.int32(0), cache, h_BTD, *none_yet, segments_BS)
    _, _, _, _, tokens_BR, mask_BR, logp_BR, _ = jax.lax.while_loop(unfinished, body, start)
    return tokens_BR, mask_BR, logp_BR


def _nothing_drawn(
    rows: int, longest: int, logp_dtype: Any | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """(alive_B, tokens_BR, mask_BR, logp_BR, or None without a dtype) before the first token."""
    spec = dims.act_spec("BS")
    return (
        jnp.ones((rows,), bool, out_sharding=dims.act_spec("B")),
        jnp.zeros((rows, longest), jnp.int32, out_sharding=spec),
        jnp.zeros((rows, longest), bool, out_sharding=spec),
        None if logp_dtype is None else jnp.zeros((rows, longest), logp_dtype, out_sharding=spec),
    )


def _with_column(x_BS: jax.Array, column_B: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x_BS, column_B[:, None], index, axis=1)


def _taken(
    index_B: jax.Array, cache: Cache, h_BTD: jax.Array, segments_BS: jax.Array, lengths_B: jax.Array
) -> tuple[Cache, jax.Array, jax.Array, jax.Array]:
    """What was prefilled for each prompt, once for each response; a response's prompt may be on another device."""

    def rows(x: jax.Array) -> jax.Array:
        spec = jax.typeof(x).sharding.spec
        return reshard(x, PartitionSpec(None, *spec[1:])).at[index_B].get(out_sharding=spec)

    return jax.tree.map(rows, (cache, h_BTD, segments_BS, lengths_B))
