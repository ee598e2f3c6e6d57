"""What a model says of given responses: log-probabilities and values of each response token."""

from functools import partial

import jax
from jax.sharding import reshard

from gptjax import dims
from gptjax.losses.cross_entropy import token_logp
from gptjax.model_types import Model, RouterSums, ScalarModel
from gptjax.types import Params


def before_response(x: jax.Array, letters: str, responses: int) -> jax.Array:
    """The last `responses` positions shifted by one: what stands before each response token.

    `letters` spell x's dims with T second. T is gathered over `context`, because the cut is not a multiple of a shard.
    """
    gathered = reshard(x, dims.act_spec(letters, decoding=True))
    end = x.shape[1] - 1
    return jax.lax.slice_in_dim(gathered, end - responses, end, axis=1)


def response_hidden(
    model: Model, params: Params, frozen: Params, rows: dict[str, jax.Array], responses: int
) -> tuple[jax.Array, RouterSums | None]:
    """float[B, R, D], the hidden state before each response token, and the routers' sums."""
    h_BTD, router = model.hidden(params, frozen, rows["tokens_BT"], rows["segments_BT"], rows["positions_BT"])
    return before_response(h_BTD, "BTD", responses), router


def hidden_logp(
    model: Model, params: Params, frozen: Params, h_BRD: jax.Array, tokens_BT: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """(logp_BR, entropy_BR) of the last R tokens of each row from the hidden states before them."""
    targets_BR = reshard(tokens_BT, dims.act_spec("BS"))[:, -h_BRD.shape[1] :]
    unembed = partial(model.unembed, params, frozen, decoding=True)
    return token_logp(unembed, h_BRD, targets_BR, temperature)


def response_logp(
    model: Model, *, params: Params, frozen: Params, rows: dict[str, jax.Array], responses: int, temperature: float
) -> tuple[jax.Array, jax.Array, RouterSums | None]:
    """(logp_BR, entropy_BR, routers' sums) of the response tokens under `params`, nats at the sampling temperature."""
    h_BRD, router = response_hidden(model, params, frozen, rows, responses)
    return *hidden_logp(model, params, frozen, h_BRD, rows["tokens_BT"], temperature), router


def response_values(
    model: ScalarModel, params: Params, frozen: Params, rows: dict[str, jax.Array], responses: int
) -> tuple[jax.Array, RouterSums | None]:
    """f32[B, R], the critic's value before each response token, and its routers' sums."""
    values_BT, router = model.values(params, frozen, rows["tokens_BT"], rows["segments_BT"], rows["positions_BT"])
    return before_response(values_BT, "BT", responses), router
