"""One answer token by token, while it is being sampled: prefill once, then one compiled step for each token."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import dims
from gptjax.generate.engine import SamplingConfig, drawn, prefilled
from gptjax.model_types import Cache, Model
from gptjax.types import Params, PromptBatch

_FEWEST_COLUMNS = 16


def prompt_room(max_length: int, sampling: SamplingConfig) -> int:
    """Longest prompt (tokens) that leaves room for the longest answer.

    Raises:
        ValueError: there is room for none.
    """
    room = max_length - sampling.max_new_tokens
    if room < 1:
        raise ValueError(
            f"an answer of up to {sampling.max_new_tokens} tokens leaves no room for a prompt: "
            f"the model has {max_length} positions"
        )
    return room


def bucket(length: int, room: int) -> int:
    """Columns that a prompt of `length` tokens is padded to: a power of two, at most `room`."""
    return min(max(_FEWEST_COLUMNS, 1 << (length - 1).bit_length()), room)


def streamer(
    model: Model,
    params: Params,
    *,
    sampling: SamplingConfig,
    end_id: int,
    max_length: int,
    pad_id: int = 0,
) -> Callable[[Sequence[int], jax.Array], Iterator[int]]:
    """A function (prompt ids, key) -> token ids of the answer, one by one.

    The same tokens as `engine.generate` draws for a batch of this one prompt with the same key, up to and including
    `end_id`. The cache always has `max_length` slots, so the decoding step is compiled once, and prefill once for each
    bucket of prompt lengths. A mesh that spreads no batch rows must be set (jax.set_mesh) here and while
    tokens are taken.

    Args:
        model: the record of pure functions.
        params: its parameters.
        sampling: temperature, truncation, longest answer.
        end_id: the token that ends an answer.
        max_length: positions that the model has, for prompt and answer together.
        pad_id: fills the columns before the prompt.

    Raises:
        ValueError: no room for a prompt; or, with the first token, a prompt that is empty or has no room.
    """
    room = prompt_room(max_length, sampling)
    prefill, decode = _compiled(model, sampling, max_length)
    gathered = jax.jit(model.gather)(params)

    def stream(ids: Sequence[int], key: jax.Array) -> Iterator[int]:
        length, columns = len(ids), bucket(len(ids), room)
        if not 0 < length <= room:
            raise ValueError(
                f"the prompt has {length} tokens, the model has room for 1 to {room}: "
                f"{max_length} positions minus {sampling.max_new_tokens} for the answer"
            )
        cache, segments_BS, token_B = prefill(gathered, _padded(ids, columns, pad_id), key)
        for r in range(sampling.max_new_tokens):
            token = int(token_B[0])
            yield token
            if token == end_id or r + 1 == sampling.max_new_tokens:
                return
            place = np.array([columns + r, length + r, r + 1], np.int32)
            cache, segments_BS, token_B = decode(gathered, cache, segments_BS, token_B, place, key)

    return stream


def _compiled(model: Model, sampling: SamplingConfig, slots: int) -> tuple[Callable, Callable]:
    """Prefill and one decoding step; each returns (cache, segments_BS, the next token)."""

    @jax.jit
    def prefill(params: Params, prompt: PromptBatch, key: jax.Array) -> tuple[Cache, jax.Array, jax.Array]:
        cache, h_BTD, segments_BS = prefilled(model, params, {}, prompt, slots=slots)
        return cache, segments_BS, drawn(model, params, {}, h_BTD, jax.random.fold_in(key, 0), sampling)

    def decode(params, cache, segments_BS, token_B, place, key):
        """`place`: the slot and the position of `token_B`, and the number of the token to draw."""
        slot, position, r = place
        segments_BS = segments_BS.at[:, slot].set(1, out_sharding=dims.act_spec("BS"))
        position_BT = jnp.broadcast_to(position, (1, 1))
        cache, h_BTD = model.decode(params, {}, cache, token_B[:, None], segments_BS, position_BT, slot)
        return cache, segments_BS, drawn(model, params, {}, h_BTD, jax.random.fold_in(key, r), sampling)

    return prefill, jax.jit(decode, donate_argnums=(1, 2))


def _padded(ids: Sequence[int], columns: int, pad_id: int) -> PromptBatch:
    tokens_BP = np.full((1, columns), pad_id, np.int32)
    tokens_BP[0, columns - len(ids) :] = ids
    return PromptBatch(tokens_BP=tokens_BP, lengths_B=np.array([len(ids)], np.int32))
