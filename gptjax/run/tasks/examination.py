"""What a policy learnt: gold and proxy scores on held-out prompts beside SFT's, KL, best-of-n, answers."""

from typing import Any, Protocol

import jax
import numpy as np

from gptjax.data.labeler import SimulatedLabeler
from gptjax.data.prompts import prompt_batch
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer
from gptjax.eval.best_of_n import best_of_n, best_of_n_kl
from gptjax.eval.intervals import clustered_mean
from gptjax.generate.engine import SamplingConfig
from gptjax.run.task import Setup
from gptjax.run.tasks.judge import Judge
from gptjax.train.reference import reference_params
from gptjax.types import Model, Params, PromptBatch, ScalarModel


class Examined(Protocol):
    """What a task says of its examination: heldout_samples answers to each of heldout_prompts, best_of before it."""

    @property
    def heldout_prompts(self) -> int: ...
    @property
    def heldout_samples(self) -> int: ...
    @property
    def best_of(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def labeler(self) -> SimulatedLabeler: ...


class Examination:
    """Held-out prompts, and the questions asked of a policy on them; `name` is the kind of task, ppo and the like."""

    def __init__(
        self,
        config: Examined,
        setup: Setup,
        tokenizer: Tokenizer,
        policy: Model,
        scalar: ScalarModel,
        frozen_models: dict[str, Any],
        heldout: list[Any],
        sampling: SamplingConfig,
        *,
        name: str,
    ):
        self.config, self.name, self._reference = config, name, frozen_models["reference"]
        everything, report = prompt_batch([messages for messages, _ in heldout], tokenizer, config.prompt_tokens)
        count = min(config.heldout_prompts, len(report.kept))
        self.prompts: PromptBatch = jax.tree.map(lambda x: x[:count], everything)
        self.asked = [heldout[index] for index in report.kept[:count]]
        self.judge = Judge(setup, tokenizer, policy, scalar, frozen_models, sampling)

    def brief(self, params: Params, key: jax.Array) -> dict[str, float]:
        """Mean gold and proxy score, KL and end rate of one answer to each prompt."""
        proxy_B1, gold_B1, kl_B1, found = self.scores(params, key, 1)
        figures = {
            "eval/proxy_score": float(proxy_B1.mean()),
            "eval/kl_nats": float(kl_B1.mean()),
            "eval/end_rate": float(np.mean([answer.ended for answer in found])),
        }
        return figures if gold_B1 is None else figures | {f"{self.name}/gold_score": float(gold_B1.mean())}

    def full(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """Everything that the report shows of the policy."""
        times, many = self.config.heldout_samples, max(self.config.best_of, self.config.heldout_samples)
        proxy_BN, gold_BN, kl_BN, after = self.scores(params, key, times)
        reference = reference_params(self._reference, params)
        proxy_sft_BN, gold_sft_BN, _, before = self.scores(reference, jax.random.fold_in(key, 1), many)
        found: dict[str, Any] = {
            f"proxy_{self.name}": float(proxy_BN.mean()),
            "proxy_sft": float(proxy_sft_BN.mean()),
            "kl_nats": float(kl_BN.mean()),
            f"end_rate_{self.name}": float(np.mean([answer.ended for answer in after])),
            "end_rate_sft": float(np.mean([answer.ended for answer in before])),
        }
        if gold_BN is not None and gold_sft_BN is not None:
            gain, low, high = clustered_mean(gold_BN.mean(1, keepdims=True) - gold_sft_BN.mean(1, keepdims=True))
            found |= {f"gold_{self.name}": float(gold_BN.mean()), "gold_sft": float(gold_sft_BN.mean())}
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
        proxy_BN, kl_BN, found = self.judge.answers(params, self.prompts, key, times)
        questions = [question for _, question in self.asked for _ in range(times)]
        gold_BN = None
        if all(question is not None for question in questions):
            labeler = self.config.labeler
            golds = [labeler.gold_score(q.name, a.text, a.ended) for q, a in zip(questions, found, strict=True)]
            gold_BN = np.reshape(golds, proxy_BN.shape)
        return proxy_BN, gold_BN, kl_BN, found

    def _table(self, before, after, many: int, times: int, gold_before, gold_after) -> list[dict[str, Any]]:
        rows = []
        for index, (messages, question) in enumerate(self.asked[:20]):
            row = {
                "prompt": messages[-1]["content"],
                "reference": question.answer if question is not None else "",
                "sft": before[index * many].text,
                self.name: after[index * times].text,
            }
            if gold_before is not None:
                row |= {"gold_sft": float(gold_before[index, 0]), f"gold_{self.name}": float(gold_after[index, 0])}
            rows.append(row)
        return rows
