"""Arrays made whole for use and cut again: parameters over `fsdp`, the residual stream over `tensor`.

Types say which sums are still open ("unreduced") or will be in the gradient ("reduced"), so that each is closed by one
reduce-scatter in place of an all-reduce whose result is thrown away in part.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from gptjax import dims
from gptjax.nn.product import SAVED


def gathered(x: jax.Array, letters: str, *, decoding: bool = False) -> jax.Array:
    """A matrix's value in the layout of its use; one that is whole already stays as it is.

    The gradient is summed over rows and positions by one reduce-scatter over `fsdp` (and `expert`, see
    `dims.width_axes`), and only the piece that stays
    crosses `data`; left to itself XLA may sum all of it everywhere, which takes twice the bytes over `fsdp`.

    Args:
        x: float[letters], laid out as `dims.gathered_spec(letters)`, or brought to `dims.param_spec(letters)` first.
        letters: its dimensions.
        decoding: the positions that it is multiplied with are not spread over `context`.
    """
    summed = dims.BATCH_AXES if decoding else (*dims.BATCH_AXES, "context")
    stored, whole = dims.param_spec(letters, x.shape), dims.gathered_spec(letters, x.shape)
    after = PartitionSpec(*whole, reduced=frozenset(summed))
    if stored == whole or jax.typeof(x).sharding.spec in (whole, after):
        return x

    axes = dims.width_axes(letters)

    def local(piece):
        piece = jax.lax.pcast(piece, tuple(axis for axis in summed if axis not in axes), to="reduced")
        return jax.lax.all_gather(piece, axes, axis=letters.index("D"), tiled=True, to="reduced")

    return jax.shard_map(local, in_specs=stored, out_specs=after)(jax.sharding.reshard(x, stored))


def gathered_rows(x_BTD: jax.Array) -> jax.Array:
    """A spread residual stream (see `dims.residual_spec`) whole along T for projections onto heads or hidden units."""
    after = PartitionSpec(*dims.act_spec("BTD"), reduced=frozenset({"tensor"}))

    def local(x_BTD):
        return jax.lax.all_gather(x_BTD, "tensor", axis=1, tiled=True, to="reduced")

    return jax.shard_map(local, in_specs=dims.residual_spec(spread=True), out_specs=after)(x_BTD)


PARTIAL_ROWS = PartitionSpec(*dims.act_spec("BTD"), unreduced=frozenset({"tensor"}))


def scattered_rows(x_BTD: jax.Array) -> jax.Array:
    """The spread residual stream from partial sums over `tensor`, laid out as PARTIAL_ROWS; named as a result."""

    def local(x_BTD):
        return jax.lax.psum_scatter(x_BTD, "tensor", scatter_dimension=1, tiled=True)

    rows_BTD = jax.shard_map(local, in_specs=PARTIAL_ROWS, out_specs=dims.residual_spec(spread=True))(x_BTD)
    return checkpoint_name(rows_BTD, SAVED)
