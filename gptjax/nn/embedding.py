"""Lookup and unembedding that keep the vocabulary sharded over `tensor`."""

from typing import Any

import jax
import jax.numpy as jnp

from gptjax import dims


def lookup(table_VD: jax.Array, tokens_BT: jax.Array, dtype: Any, *, decoding: bool = False) -> jax.Array:
    """Rows of the table, one for each token; no device ever holds more than its share of the vocabulary.

    Of a table whose width is spread, either the columns travel to the tokens, or, where a device has fewer tokens than
    words, the tokens to the columns: every device looks up its columns for all tokens, and an all-to-all brings them
    home. Then the gradient stays where its columns are, and is summed in the table's dtype.

    Args:
        table_VD: float[V, D], V spread over `tensor`, D over `dims.width_axes` or whole.
        tokens_BT: i32[B, T], in [0, V).
        dtype: of the result.
        decoding: T is not spread over `context`.

    Returns:
        float[B, T, D].
    """
    table_spec = jax.typeof(table_VD).sharding.spec
    axes = table_spec[1]
    others = tuple(axis for axis in (*dims.BATCH_AXES, "context") if axis not in (axes or ()))

    def local(table_VD, tokens_BT):
        pieces = 1 if axes is None else jax.lax.axis_size(axes)
        tokens_travel = pieces > 1 and tokens_BT.size < table_VD.shape[0]
        if tokens_travel:
            tokens_BT = jax.lax.all_gather(tokens_BT, axes, axis=0, tiled=True)
        else:
            table_VD = table_VD.astype(dtype)
            if axes is not None:
                table_VD = jax.lax.pcast(table_VD, others, to="varying")
                table_VD = jax.lax.all_gather(table_VD, axes, axis=1, tiled=True)
        start = jax.lax.axis_index("tensor") * table_VD.shape[0]
        row_BT = tokens_BT - start
        mine_BT = (row_BT >= 0) & (row_BT < table_VD.shape[0])
        h_BTD = table_VD[jnp.where(mine_BT, row_BT, 0)].astype(dtype)
        h_BTD = jnp.where(mine_BT[:, :, None], h_BTD, 0)
        if tokens_travel:
            h_BTD = jax.lax.all_to_all(h_BTD, axes, split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(h_BTD, "tensor")

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
