"""One answer, token by token as it is sampled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from gptjax import dims
from gptjax.generate.engine import SamplingConfig, prompt_layout
from gptjax.nn.sampling import sample
from gptjax.run.mesh import put
from gptjax.types import Model, Params, PromptBatch

_SHORTEST_BUCKET = 16


def streamer(
    model: Model, params: Params, mesh: Any, *, sampling: SamplingConfig, end_id: int, max_length: int, pad_id: int = 0
) -> Callable[[Sequence[int], jax.Array], Iterator[int]]:
    """A function (prompt ids, key) -> token ids of the answer, `end_id` included if it was sampled.

    The tokens are those that gptjax.generate.engine.generate draws with the same key. The prompt is compiled once for
    each power of two of its length, the decoding step once. The mesh must be set (jax.set_mesh) while tokens are taken.

    Args:
        model: the record of pure functions.
        params: its parameters, on the mesh.
        mesh: where they lie.
        sampling: temperature, truncation, longest answer.
        end_id: the token that ends an answer.
        max_length: positions that the model has; the prompt and the longest answer must fit.
        pad_id: what stands left of a prompt.

    Raises:
        ValueError: the longest answer fills the whole model, or (on the first token) the prompt does not fit.
    """
    room = prompt_room(max_length, sampling)
    params = jax.jit(model.gather)(params)
    prefill, step = _compiled(model, sampling, slots=max_length)

    def stream(ids: Sequence[int], key: jax.Array) -> Iterator[int]:
        if not 0 < len(ids) <= room:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model has room for 1 to {room} before the answer")
        columns = bucket(len(ids), room)
        padded = np.array([[pad_id] * (columns - len(ids)) + list(ids)], np.int32)
        batch = put(PromptBatch(tokens_BP=padded, lengths_B=np.array([len(ids)], np.int32)), mesh)
        token_B, cache = prefill(params, batch, key)
        for r in range(sampling.max_new_tokens):
            token = int(np.asarray(token_B)[0])
            yield token
            if token == end_id or r + 1 == sampling.max_new_tokens:
                return
            token_B, cache = step(params, cache, token_B, batch.lengths_B, np.int32(columns), np.int32(r), key)

    return stream


def prompt_room(max_length: int, sampling: SamplingConfig) -> int:
    """Longest prompt that leaves room for the longest answer.

    Raises:
        ValueError: there is no room for any prompt.
    """
    room = max_length - sampling.max_new_tokens
    if room < 1:
        raise ValueError(
            f"an answer of up to {sampling.max_new_tokens} tokens leaves no room for a prompt: "
            f"the model has {max_length} positions"
        )
    return room


def bucket(length: int, room: int) -> int:
    """Columns of a prompt of `length` tokens: the next power of two, or all the room there is."""
    return min(room, max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length()))


def _compiled(model: Model, sampling: SamplingConfig, slots: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def draw(params, h_BTD, key, r):
        logits_BV = model.unembed(params, {}, h_BTD, decoding=True)[:, 0]
        options = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        return sample(logits_BV, jax.random.fold_in(key, r), **options)

    def prefill(params, prompts, key):
        segments_BP, positions_BP = prompt_layout(prompts.lengths_B, prompts.tokens_BP.shape[1])
        inputs = (reshard(x, dims.act_spec("BT")) for x in (prompts.tokens_BP, segments_BP, positions_BP))
        cache, h_BTD = model.prefill(params, {}, *inputs, slots=slots)
        h_BTD = reshard(h_BTD, dims.act_spec("BTD", decoding=True))[:, -1:]
        return draw(params, h_BTD, key, 0), cache

    def step(params, cache, token_B, lengths_B, columns, r, key):
        """Feed token r, draw token r + 1; slots right of it have segment 1 too, causality hides them."""
        first_B1 = (columns - lengths_B)[:, None]
        segments_BS = (jnp.arange(slots, dtype=jnp.int32)[None] >= first_B1).astype(jnp.int32)
        segments_BS = reshard(segments_BS, dims.act_spec("BS"))
        position_BT = (lengths_B + r)[:, None]
        cache, h_BTD = model.decode(params, {}, cache, token_B[:, None], segments_BS, position_BT, columns + r)
        return draw(params, h_BTD, key, r + 1), cache

    return jax.jit(prefill), jax.jit(step, donate_argnums=1)
