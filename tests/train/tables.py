"""The smallest legal models: a table of next-token logits, and a table of values."""

import jax
import jax.numpy as jnp

from gptjax.model_types import Cache, Model, ScalarModel, ValueHead


def bigram(vocabulary: int = 4) -> Model:
    """The next token's logits are the row of the current token."""

    def rows(params, tokens_BT):
        return params["table"].at[tokens_BT].get(out_sharding=jax.typeof(tokens_BT).sharding.spec)

    def hidden(params, frozen, tokens_BT, segments_BT, positions_BT, *, causal=True, key=None):
        return rows(params, tokens_BT), None

    def prefill(params, frozen, tokens_BT, segments_BT, positions_BT, *, slots):
        return Cache(k_BKSH=jnp.zeros(()), v_BKSH=jnp.zeros(())), rows(params, tokens_BT)

    def decode(params, frozen, cache, token_BT, segments_BS, positions_BT, index):
        return cache, rows(params, token_BT)

    return Model(
        init=lambda key: {"table": jnp.zeros((vocabulary, vocabulary))},
        hidden=hidden,
        unembed=lambda params, frozen, h_BTD, *, decoding=False: h_BTD,
        prefill=prefill,
        decode=decode,
        gather=lambda params: params,
        roles={"table": "matrix"},
        letters={"table": "VV"},
    )


def table_of_values() -> ScalarModel:
    def values(params, frozen, tokens_BT, segments_BT, positions_BT):
        return params["value"].at[tokens_BT].get(out_sharding=jax.typeof(tokens_BT).sharding.spec), None

    return ScalarModel(
        init=lambda key: {"value": jnp.zeros(4)}, values=values, roles={"value": "matrix"}, letters={"value": "V"}
    )


def linear_head() -> ValueHead:
    """A value head on the bigram's hidden states."""
    return ValueHead(
        init=lambda key: {"head": jnp.zeros(4), "bias": jnp.zeros(())},
        values=lambda params, h_BTD: h_BTD @ params["head"] + params["bias"],
        roles={"head": "matrix", "bias": "bias"},
        letters={"head": "D", "bias": ""},
    )
