"""Lookup and unembedding that keep the vocabulary sharded over `tensor`."""

import jax
import jax.numpy as jnp

from gptjax import dims


def lookup(table_VD: jax.Array, tokens_BT: jax.Array, *, decoding: bool = False) -> jax.Array:
    """Rows of the table, one for each token; no device ever holds more than its share of the vocabulary.

    Args:
        table_VD: float[V, D], V spread over `tensor`, D over `dims.width_axes` or whole.
        tokens_BT: i32[B, T], in [0, V).
        decoding: T is not spread over `context`.

    Returns:
        float[B, T, D].
    """

    table_spec = jax.typeof(table_VD).sharding.spec

    def local(table_VD, tokens_BT):
        if (axes := table_spec[1]) is not None:
            others = tuple(axis for axis in (*dims.BATCH_AXES, "context") if axis not in axes)
            table_VD = jax.lax.pcast(table_VD, others, to="varying")
            table_VD = jax.lax.all_gather(table_VD, axes, axis=1, tiled=True)
        start = jax.lax.axis_index("tensor") * table_VD.shape[0]
        row_BT = tokens_BT - start
        mine_BT = (row_BT >= 0) & (row_BT < table_VD.shape[0])
        h_BTD = table_VD[jnp.where(mine_BT, row_BT, 0)]
        return jax.lax.psum(jnp.where(mine_BT[:, :, None], h_BTD, 0), "tensor")

    return jax.shard_map(
        local,
        in_specs=(table_spec, dims.act_spec("BT", decoding=decoding)),
        out_specs=dims.act_spec("BTD", decoding=decoding),
    )(table_VD, tokens_BT)


def unembed(h_BTD: jax.Array, table_VD: jax.Array, *, decoding: bool = False) -> jax.Array:
    """Logits of every token of the vocabulary, in at least float32.

    Args:
        h_BTD: float[B, T, D].
        table_VD: float[V, D], D gathered, V spread over `tensor`.
        decoding: T is not spread over `context`.

    Returns:
        float32 (or wider) [B, T, V], V spread over `tensor`.
    """
    return jnp.einsum(
        "BTD,VD->BTV",
        h_BTD,
        table_VD,
        preferred_element_type=jnp.promote_types(h_BTD.dtype, jnp.float32),
        out_sharding=dims.act_spec("BTV", decoding=decoding),
    )
