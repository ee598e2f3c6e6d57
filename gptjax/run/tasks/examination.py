"""What PPO changed: gold and proxy scores on held-out prompts beside SFT's, KL, best-of-n, answers before and after."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gptjax.data.loader import evaluation_batches
from gptjax.data.prompts import prompt_batch
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer, repeated
from gptjax.eval.best_of_n import best_of_n, best_of_n_kl
from gptjax.eval.intervals import clustered_mean
from gptjax.generate.engine import SamplingConfig
from gptjax.run.mesh import put
from gptjax.run.task import Setup
from gptjax.run.tasks.upstream import sampler
from gptjax.train.ppo import served_policy
from gptjax.train.reference import reference_params
from gptjax.train.response import response_logp
from gptjax.train.rollout import full_rows, last_score
from gptjax.types import Model, Params, PromptBatch, ScalarModel, TrainState

if TYPE_CHECKING:
    from gptjax.run.tasks.ppo import PpoTask


class Examination:
    """Held-out prompts, and the questions asked of a policy on them."""

    def __init__(
        self,
        config: "PpoTask",
        setup: Setup,
        tokenizer: Tokenizer,
        policy: Model,
        scalar: ScalarModel,
        frozen_models: dict[str, Any],
        heldout: list[Any],
    ):
        self.config, self.setup, self.tokenizer = config, setup, tokenizer
        self.policy, self.scalar, self.frozen = policy, scalar, frozen_models
        everything, report = prompt_batch([messages for messages, _ in heldout], tokenizer, config.prompt_tokens)
        count = min(config.heldout_prompts, len(report.kept))
        self.prompts: PromptBatch = jax.tree.map(lambda x: x[:count], everything)
        self.asked = [heldout[index] for index in report.kept[:count]]
        sampling = SamplingConfig(max_new_tokens=config.ppo.response_tokens, temperature=config.ppo.temperature)
        self.sample = sampler(policy, setup, tokenizer, sampling)
        self._judge = jax.jit(self._proxy_and_kl)

    def brief(self, state: TrainState, key: jax.Array) -> dict[str, float]:
        """Mean gold and proxy score, KL and end rate of one answer to each prompt."""
        proxy_B1, gold_B1, kl_B1, found = self.scores(served_policy(state), key, 1)
        figures = {
            "eval/proxy_score": float(proxy_B1.mean()),
            "eval/kl_nats": float(kl_B1.mean()),
            "eval/end_rate": float(np.mean([answer.ended for answer in found])),
        }
        return figures if gold_B1 is None else figures | {"ppo/gold_score": float(gold_B1.mean())}

    def full(self, state: TrainState, key: jax.Array) -> dict[str, Any]:
        """Everything that the report shows of PPO."""
        times, many = self.config.heldout_samples, max(self.config.best_of, self.config.heldout_samples)
        proxy_BN, gold_BN, kl_BN, after = self.scores(served_policy(state), key, times)
        reference = reference_params(self.frozen["reference"], state.params["policy"])
        proxy_sft_BN, gold_sft_BN, _, before = self.scores(reference, jax.random.fold_in(key, 1), many)
        found: dict[str, Any] = {
            "policy_weights": "average" if "average" in state.extra else "last",
            "proxy_ppo": float(proxy_BN.mean()),
            "proxy_sft": float(proxy_sft_BN.mean()),
            "kl_nats": float(kl_BN.mean()),
            "kl_target_nats": self.config.ppo.kl_target,
            "end_rate_ppo": float(np.mean([answer.ended for answer in after])),
            "end_rate_sft": float(np.mean([answer.ended for answer in before])),
        }
        if gold_BN is not None and gold_sft_BN is not None:
            gain, low, high = clustered_mean(gold_BN.mean(1, keepdims=True) - gold_sft_BN.mean(1, keepdims=True))
            found |= {"gold_ppo": float(gold_BN.mean()), "gold_sft": float(gold_sft_BN.mean())}
            found |= {"gold_gain": gain, "gold_gain_ci": [low, high]}
            found["best_of_n"] = [
                {
                    "n": n,
                    "kl_nats": best_of_n_kl(n),
                    "gold": best_of_n(proxy_sft_BN, gold_sft_BN, n),
                    "proxy": best_of_n(proxy_sft_BN, proxy_sft_BN, n),
                }
                for n in (2**power for power in range(many.bit_length()))
                if n <= many
            ]
        found["answers"] = self._table(before, after, many, times, gold_sft_BN, gold_BN)
        return found

    def scores(
        self, params: Params, key: jax.Array, times: int
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[Answer]]:
        """(proxy_BN, gold_BN or None, kl_BN, answers): N answers to each of the B prompts."""
        rows = repeated(self.prompts, times)
        batch_size = 2 * self.setup.batch_size
        found = self.sample(params, rows, key, batch_size)
        proxy, kl = self._judged(params, rows, found, batch_size)
        shape = (len(self.asked), times)
        questions = [question for _, question in self.asked for _ in range(times)]
        gold_BN = None
        if all(question is not None for question in questions):
            labeler = self.config.labeler
            golds = [labeler.gold_score(q.name, a.text, a.ended) for q, a in zip(questions, found, strict=True)]
            gold_BN = np.reshape(golds, shape)
        return proxy.reshape(shape), gold_BN, kl.reshape(shape), found

    def _judged(
        self, params: Params, rows: PromptBatch, found: list[Answer], batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        responses = np.zeros((len(found), self.config.ppo.response_tokens), np.int32)
        lengths = np.array([len(answer.tokens) for answer in found])
        for row, answer in enumerate(found):
            responses[row, : len(answer.tokens)] = answer.tokens
        proxies, kls = [], []
        starts = range(0, len(found), batch_size)
        for start, batch in zip(starts, evaluation_batches(rows, batch_size), strict=True):
            filled = PromptBatch(tokens_BP=batch.tokens_BP, lengths_B=np.maximum(batch.lengths_B, 1))
            size = len(found[start : start + batch_size])
            tokens_BR = np.zeros((batch_size, responses.shape[1]), np.int32)
            tokens_BR[:size] = responses[start : start + size]
            length_B = np.ones(batch_size, np.int32)
            length_B[:size] = lengths[start : start + size]
            pieces = put(PromptBatch(tokens_BP=tokens_BR, lengths_B=length_B), self.setup.mesh)
            proxy_B, kl_B = self._judge(params, self.frozen, put(filled, self.setup.mesh), pieces)
            proxies.append(np.asarray(proxy_B)[:size])
            kls.append(np.asarray(kl_B)[:size])
        return np.concatenate(proxies), np.concatenate(kls)

    def _proxy_and_kl(self, params: Params, frozen: Any, prompts: PromptBatch, responses: PromptBatch):
        """Normalised reward-model score and sequence k1 against the reference, f32[B] each."""
        size = responses.tokens_BP.shape[1]
        mask_BR = np.arange(size)[None] < responses.lengths_B[:, None]
        tokens_BT, segments_BT, positions_BT = full_rows(prompts, responses.tokens_BP, mask_BR)
        rows = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "positions_BT": positions_BT}
        raw_B = last_score(self.scalar, frozen["reward"], {}, rows)
        logp_BR, reference_BR = (
            response_logp(
                self.policy,
                params=own,
                frozen={},
                rows=rows,
                responses=size,
                temperature=self.config.ppo.temperature,
            )[0]
            for own in (params, reference_params(frozen["reference"], params))
        )
        kl_B = jax.numpy.sum(jax.numpy.where(mask_BR, logp_BR - reference_BR, 0.0), axis=1)
        return frozen["reward_gain"] * raw_B + frozen["reward_bias"], kl_B

    def _table(self, before, after, many: int, times: int, gold_before, gold_after) -> list[dict[str, Any]]:
        rows = []
        for index, (messages, question) in enumerate(self.asked[:20]):
            row = {
                "prompt": messages[-1]["content"],
                "reference": question.answer if question is not None else "",
                "sft": before[index * many].text,
                "ppo": after[index * times].text,
            }
            if gold_before is not None:
                row |= {"gold_sft": float(gold_before[index, 0]), "gold_ppo": float(gold_after[index, 0])}
            rows.append(row)
        return rows
