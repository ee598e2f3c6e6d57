"""NNX modules in, pure functions out: the only way from a module to the rest of gptjax."""

import dataclasses
import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from gptjax import dims
from gptjax.model.config import ModelConfig
from gptjax.model.heads import ScalarTransformer, ValueHeadLayer
from gptjax.model.transformer import Transformer
from gptjax.model_types import Model, Ratio, ScalarModel, ValueHead
from gptjax.nn.gather import gathered
from gptjax.types import Params


def language_model(config: ModelConfig) -> Model:
    """The Transformer as a record of pure functions over a nested dict of parameters."""
    module = Transformer(config)
    graph, _ = nnx.split(module)

    def hidden(params, frozen, tokens_BT, segments_BT, positions_BT, *, causal=True, key=None):
        del frozen
        return nnx.merge(graph, params)(tokens_BT, segments_BT, positions_BT, causal=causal, key=key)

    def unembed(params, frozen, h_BTD, *, decoding=False):
        del frozen
        return nnx.merge(graph, params).unembed(h_BTD, decoding=decoding)

    def prefill(params, frozen, tokens_BT, segments_BT, positions_BT, *, slots):
        del frozen
        return nnx.merge(graph, params).prefill(tokens_BT, segments_BT, positions_BT, slots=slots)

    def decode(params, frozen, cache, token_BT, segments_BS, positions_BT, index):
        del frozen
        return nnx.merge(graph, params).decode(cache, token_BT, segments_BS, positions_BT, index)

    def gather_unembedding(params):
        name = "embedding_VD" if config.tied else "unembedding_VD"
        table_VD = gathered(params[name].astype(config.dtype), "VD")
        return params | {name: table_VD.astype(params[name].dtype)}

    return Model(
        init=partial(_init, module),
        hidden=hidden,
        unembed=unembed,
        prefill=prefill,
        decode=decode,
        gather=partial(_gather, module, jnp.dtype(config.dtype)),
        gather_unembedding=gather_unembedding,
        roles=_metadata(module, "role"),
        letters=_metadata(module, "letters"),
        ratios=_ratios(module, config),
    )


def scalar_model(config: ModelConfig) -> ScalarModel:
    """The Transformer with a scalar head as a record; its trunk's parameters are `params["trunk"]`."""
    module = ScalarTransformer(dataclasses.replace(config, tied=True))
    graph, _ = nnx.split(module)

    def values(params, frozen, tokens_BT, segments_BT, positions_BT):
        del frozen
        return nnx.merge(graph, params)(tokens_BT, segments_BT, positions_BT)

    return ScalarModel(
        init=partial(_init, module),
        values=values,
        roles=_metadata(module, "role"),
        letters=_metadata(module, "letters"),
        ratios=_ratios(module, config),
    )


def value_head(config: ModelConfig) -> ValueHead:
    """A scalar head for the hidden states of `language_model(config)`, as a record; all zero at the start."""
    module = ValueHeadLayer(config)
    graph, _ = nnx.split(module)
    return ValueHead(
        init=partial(_init, module),
        values=lambda params, h_BTD: nnx.merge(graph, params)(h_BTD),
        roles=_metadata(module, "role"),
        letters=_metadata(module, "letters"),
        ratios=_ratios(module, config),
    )


def _variables(module: nnx.Module) -> list[tuple[tuple[str, ...], Any]]:
    return [(tuple(map(str, path)), variable) for path, variable in nnx.to_flat_state(nnx.state(module))]


def _metadata(module: nnx.Module, name: str) -> Params:
    return _nested({path: variable.get_metadata()[name] for path, variable in _variables(module)})


def _ratios(module: nnx.Module, config: ModelConfig) -> Params:
    """muP's metadata: matrices see inputs that grow with the width.

    The logits' multiplier divides every gradient by the width ratio, the residual's those of what is stacked by the
    depth ratio.
    """
    if config.mup_base_width is None:
        return None

    def ratio(role: str, letters: str) -> Ratio:
        return Ratio(
            width=config.width_ratio if role == "matrix" else 1.0,
            gradient=config.width_ratio * (config.depth_ratio if letters.startswith("L") else 1.0),
        )

    return jax.tree.map(ratio, _metadata(module, "role"), _metadata(module, "letters"))


def _init(module: nnx.Module, key: jax.Array) -> Params:
    """Initial parameters; each draws from a key of its own path, so adding one changes no other."""
    values = {}
    for path, variable in _variables(module):
        about = variable.get_metadata()
        struct = variable.get_value()
        spec = dims.param_spec(about["letters"], struct.shape)
        own_key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        noise = jax.random.normal(own_key, struct.shape, struct.dtype, out_sharding=spec)
        values[path] = about["mean"] + about["std"] * noise
    return _nested(values)


def _gather(module: nnx.Module, dtype: Any, params: Params) -> Params:
    def gathered(param: jax.Array, letters: str, role: str) -> jax.Array:
        # norms and routers compute in their own dtype in training: rounded here, another policy would sample
        own = role == "norm" or letters.endswith("DE")
        return reshard(param if own else param.astype(dtype), dims.gathered_spec(letters, param.shape))

    return jax.tree.map(gathered, params, _metadata(module, "letters"), _metadata(module, "role"))


def _nested(flat: dict[tuple[str, ...], Any]) -> Params:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree
