"""The decoder Transformer: embedding, scanned blocks, final norm, unembedding; and its one-token form with a cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.layers import Block, Norm, dropout
from gptjax.model.parameters import declare, use
from gptjax.model_types import Cache, RouterSums
from gptjax.nn import product
from gptjax.nn.embedding import lookup, unembed
from gptjax.nn.kernels import SAVED

_BLOCK_INPUT = "block_input"
_NAMED_PRODUCTS = jax.checkpoint_policies.save_only_these_names(product.SAVED)


def _full_products(primitive: Any, *operands: Any, **params: Any) -> Any:
    """Keep products with weights; a sum that is left open over devices cannot be kept, what it comes to is named."""
    layout = params.get("out_sharding")
    if layout is not None and layout.spec.unreduced:
        return False
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *operands, **params)


_REMAT = {
    "matmuls": jax.checkpoint_policies.save_from_both_policies(_full_products, _NAMED_PRODUCTS),
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def _policy(config: ModelConfig) -> Callable[..., bool] | None:
    """What a block keeps for the backward pass; of quantised products the result, not the sums of 8-bit numbers."""
    if config.remat == "matmuls" and config.matmuls != "full":
        return _NAMED_PRODUCTS
    return _REMAT.get(config.remat)


class Transformer(nnx.Module):
    def __init__(self, config: ModelConfig):
        self.config = config
        self.embedding_VD = declare(config, "VD", "embedding", std=0.02)
        self.position_TD = declare(config, "TD", "embedding", std=0.02) if config.positions == "learned" else None
        self.blocks = Block(config)
        self.final_norm = Norm(config, "")
        std = config.width**-0.5 if config.mup_base_width is None else 0.0
        self.unembedding_VD = None if config.tied else declare(config, "VD", "embedding", std=std)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, *, decoding: bool = False) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        h_BTD = lookup(self.embedding_VD.get_value(), tokens_BT, dtype, decoding=decoding)
        if self.position_TD is None:
            return h_BTD
        table_TD = use(self.position_TD, "TD", dtype)
        return h_BTD + table_TD.at[positions_BT].get(out_sharding=dims.act_spec("BTD", decoding=decoding))

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        *,
        causal: bool = True,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterSums | None]:
        """Hidden states f[B, T, D] after the final norm, and the routers' sums, over layers, if there are experts."""
        h_BTD, _, router = self._blocks(tokens_BT, segments_BT, positions_BT, causal, key, keep_cache=False)
        return h_BTD, router

    def prefill(
        self, tokens_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array, *, slots: int
    ) -> tuple[Cache, jax.Array]:
        """Hidden states of the prompt, and a cache with room for `slots` positions whose first T are filled."""
        h_BTD, kept, _ = self._blocks(tokens_BT, segments_BT, positions_BT, True, None, keep_cache=True)
        assert kept is not None
        room = [(0, 0), (0, 0), (0, slots - tokens_BT.shape[1]), (0, 0)]

        def by_layer(x_LBTKH: jax.Array) -> tuple[jax.Array, ...]:
            seen_LBKSH = jnp.swapaxes(reshard(x_LBTKH, dims.act_spec("LBSKH")), 2, 3)
            return tuple(jnp.pad(seen_LBKSH[layer], room) for layer in range(self.config.layers))

        cache = Cache(k_BKSH=by_layer(kept[0]), v_BKSH=by_layer(kept[1]))
        return cache, h_BTD

    def decode(
        self,
        cache: Cache,
        token_BT: jax.Array,
        segments_BS: jax.Array,
        positions_BT: jax.Array,
        index: jax.Array,
    ) -> tuple[Cache, jax.Array]:
        """One more token for each row: hidden states f[B, 1, D] and the cache with slot `index` filled."""
        graph, blocks = nnx.split(self.blocks)

        token_BT, positions_BT = (reshard(x, dims.act_spec("BT", decoding=True)) for x in (token_BT, positions_BT))
        h_BTD = self.embed(token_BT, positions_BT, decoding=True)
        seen = []
        for layer, (k_BKSH, v_BKSH) in enumerate(zip(cache.k_BKSH, cache.v_BKSH, strict=True)):
            block = nnx.merge(graph, jax.tree.map(lambda x, layer=layer: x[layer], blocks))
            h_BTD, *kept = block.decode(h_BTD, k_BKSH, v_BKSH, segments_BS, positions_BT, index)
            seen.append(kept)
        k_BKSH, v_BKSH = zip(*seen, strict=True)
        return Cache(k_BKSH=k_BKSH, v_BKSH=v_BKSH), self.final_norm(h_BTD)

    def unembed(self, h_BTD: jax.Array, *, decoding: bool = False) -> jax.Array:
        table = self.embedding_VD if self.unembedding_VD is None else self.unembedding_VD
        if self.config.mup_base_width is not None:
            h_BTD /= self.config.width_ratio
        return unembed(h_BTD, use(table, "VD", h_BTD.dtype, decoding=decoding), decoding=decoding)

    def _blocks(self, tokens_BT, segments_BT, positions_BT, causal, key, *, keep_cache):
        graph, blocks = nnx.split(self.blocks)
        numbers = jnp.arange(self.config.layers)

        def body(h_BTD, layer):
            params, number = layer
            if self.config.remat == "offload":  # elsewhere the name would only cost room
                h_BTD = checkpoint_name(h_BTD, _BLOCK_INPUT)
            layer_key = None if key is None else jax.random.fold_in(key, number)
            block = nnx.merge(graph, params)
            h_BTD, k_BTKH, v_BTKH, router = block(h_BTD, segments_BT, positions_BT, causal=causal, key=layer_key)
            return h_BTD, ((k_BTKH, v_BTKH) if keep_cache else None, router)

        if policy := _policy(self.config):
            body = jax.checkpoint(body, policy=policy)
        h_BTD = reshard(self.embed(tokens_BT, positions_BT), dims.residual_spec(spread=self.config.spread_norms))
        if key is not None:
            h_BTD = dropout(h_BTD, self.config.dropout, jax.random.fold_in(key, self.config.layers))
        h_BTD, (cache, routers) = jax.lax.scan(body, h_BTD, (blocks, numbers), unroll=self.config.unroll)
        h_BTD = reshard(self.final_norm(h_BTD), dims.act_spec("BTD"))
        return h_BTD, cache, None if routers is None else _over_layers(routers)


def _over_layers(routers: RouterSums) -> RouterSums:
    """Losses as means over layers, so that a coefficient means the same at any depth; counts as sums."""
    return RouterSums(
        loss=jnp.mean(routers.loss),
        balance=jnp.mean(routers.balance),
        z=jnp.mean(routers.z),
        dropped=jnp.sum(routers.dropped),
        choices=jnp.sum(routers.choices),
    )
