"""Answers of a policy to prompts, with what the reward model and the reference say of them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.loader import evaluation_batches
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, repeated
from gptjax.generate.engine import SamplingConfig
from gptjax.model_types import Model, ScalarModel
from gptjax.run.mesh import fetch, put
from gptjax.run.task import Setup
from gptjax.run.tasks.sampler import sampler
from gptjax.train.normalise import normalised
from gptjax.train.reference import reference_params
from gptjax.train.response import response_logp
from gptjax.train.rollout import full_rows, last_score
from gptjax.types import Params, PromptBatch


class Judge:
    """Samples and judges; `frozen_models` are a task's: reference and, with a reward model, reward, reward_gain and
    reward_bias."""

    def __init__(
        self,
        setup: Setup,
        tokenizer: Tokenizer,
        policy: Model,
        scalar: ScalarModel | None,
        frozen_models: dict[str, Any],
        sampling: SamplingConfig,
    ):
        self._mesh, self._share, self._batch_size = setup.mesh, setup.share, 2 * setup.batch_size
        self._policy, self.scalar, self._frozen, self._sampling = policy, scalar, frozen_models, sampling
        self._sample = sampler(policy, setup, tokenizer, sampling)
        self._figures = jax.jit(self._proxy_and_kl)

    def answers(
        self, params: Params, prompts: PromptBatch, key: jax.Array, times: int
    ) -> tuple[np.ndarray, np.ndarray, list[Answer]]:
        """(proxy_BN, kl_BN, answers): N = `times` answers to each of the B prompts, in order.

        proxy_BN: normalised reward-model scores; NaN without a reward model.
        kl_BN: k1 of each whole answer from the reference (nats).
        """
        rows = repeated(prompts, times)
        found = self._sample(params, rows, key, self._batch_size)
        proxy, kl = self._judged(params, rows, found)
        shape = (len(prompts.lengths_B), times)
        return proxy.reshape(shape), kl.reshape(shape), found

    def _judged(self, params: Params, rows: PromptBatch, found: list[Answer]) -> tuple[np.ndarray, np.ndarray]:
        responses = PromptBatch(
            tokens_BP=np.zeros((len(found), self._sampling.max_new_tokens), np.int32),
            lengths_B=np.array([len(answer.tokens) for answer in found], np.int32),
        )
        for row, answer in enumerate(found):
            responses.tokens_BP[row, : len(answer.tokens)] = answer.tokens

        def batches(everything: PromptBatch) -> Iterator[PromptBatch]:
            for batch in evaluation_batches(everything, self._batch_size, self._share):
                lengths_B = np.maximum(batch.lengths_B, 1)  # filler rows need a token to attend to
                yield put(PromptBatch(tokens_BP=batch.tokens_BP, lengths_B=lengths_B), self._mesh)

        judged = [
            fetch(self._figures(params, self._frozen, *pair))
            for pair in zip(batches(rows), batches(responses), strict=True)
        ]
        proxy, kl = (np.concatenate(pieces)[: len(found)] for pieces in zip(*judged, strict=True))
        return proxy, kl

    def _proxy_and_kl(self, params: Params, frozen: Any, prompts: PromptBatch, responses: PromptBatch):
        """Normalised reward-model score and sequence k1 against the reference, f32[B] each."""
        size = responses.tokens_BP.shape[1]
        mask_BR = np.arange(size)[None] < responses.lengths_B[:, None]
        tokens_BT, segments_BT, positions_BT = full_rows(prompts, responses.tokens_BP, mask_BR)
        rows = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "positions_BT": positions_BT}
        logp_BR, reference_BR = (
            response_logp(
                self._policy,
                params=own,
                frozen={},
                rows=rows,
                responses=size,
                temperature=self._sampling.temperature,
            )[0]
            for own in (params, reference_params(frozen["reference"], params))
        )
        kl_B = jnp.sum(jnp.where(mask_BR, logp_BR - reference_BR, 0.0), axis=1)
        if self.scalar is None:
            return jnp.full_like(kl_B, jnp.nan), kl_B
        return normalised(last_score(self.scalar, frozen["reward"], {}, rows), frozen), kl_B
