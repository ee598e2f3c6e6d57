"""What a policy learnt: gold and proxy scores on held-out prompts beside SFT's, KL, best-of-n, answers."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.data.loader import own_rows
from gptjax.data.prompts import prompt_batch
from gptjax.data.tokenizer import Tokenizer
from gptjax.eval.answers import Answer
from gptjax.eval.best_of_n import best_of_n, best_of_n_kl
from gptjax.eval.intervals import clustered_mean
from gptjax.generate.engine import SamplingConfig
from gptjax.model_types import Model, ScalarModel
from gptjax.run.mesh import fetch, put
from gptjax.run.task import Setup
from gptjax.run.tasks.asked import Asked, PolicyTask, PromptedTask
from gptjax.run.tasks.choices import Choices
from gptjax.run.tasks.judge import Judge
from gptjax.run.tasks.program import program_figures, reward_program
from gptjax.train.dpo import response_logps
from gptjax.train.reference import reference_params
from gptjax.types import Params, PromptBatch


class Scored(NamedTuple):
    """N answers to each of B prompts.

    proxy_BN: what the policy is trained on.  gold_BN: what it is for, if that is known; both are the same where the
    reward is a program.
    kl_BN: nats from the reference.  figures: a program's figures by name, f64[B N] each.
    """

    proxy_BN: np.ndarray
    gold_BN: np.ndarray | None
    kl_BN: np.ndarray
    answers: list[Answer]
    figures: dict[str, np.ndarray]


class Examination:
    """Held-out prompts, and the questions asked of a policy on them; `name` is the kind of task, ppo and the like."""

    def __init__(
        self,
        config: PolicyTask,
        setup: Setup,
        tokenizer: Tokenizer,
        policy: Model,
        scalar: ScalarModel,
        frozen_models: dict[str, Any],
        heldout: list[Asked],
        sampling: SamplingConfig,
        *,
        name: str,
    ):
        self.config, self.name, self._reference = config, name, frozen_models["reference"]
        everything, kept = prompt_batch([asked.messages for asked in heldout], tokenizer, config.prompt_tokens)
        count = min(config.heldout_prompts, len(kept))
        self.prompts: PromptBatch = jax.tree.map(lambda x: x[:count], everything)
        self.asked = [heldout[index] for index in kept[:count]]
        program = config.program if isinstance(config, PromptedTask) else None
        self.program = None if program is None else reward_program(program)
        self._logps = jax.jit(partial(response_logps, model=policy))
        self._mesh, self._share, self._batch_size = setup.mesh, setup.share, setup.batch_size
        self.choices = Choices(self.asked, tokenizer, setup.mesh.shape["context"])
        judge = scalar if "reward" in frozen_models else None
        self.judge = Judge(setup, tokenizer, policy, judge, frozen_models, sampling)

    def brief(self, params: Params, key: jax.Array) -> dict[str, float]:
        """Mean gold and proxy score, KL and end rate of one answer to each prompt."""
        found = self.scores(params, key, 1)
        figures = {
            "eval/proxy_score": _mean(found.proxy_BN),
            "eval/kl_nats": float(found.kl_BN.mean()),
            "eval/end_rate": float(np.mean([answer.ended for answer in found.answers])),
        } | {f"eval/{name}": _mean(values) for name, values in found.figures.items()}
        return figures if found.gold_BN is None else figures | {f"{self.name}/gold_score": _mean(found.gold_BN)}

    def full(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """Everything that the report shows of the policy."""
        times, many = self.config.heldout_samples, max(self.config.best_of, self.config.heldout_samples)
        last = self.scores(params, key, times)
        reference = reference_params(self._reference, params)
        first = self.scores(reference, jax.random.fold_in(key, 1), many)
        proxy_BN, gold_BN, kl_BN, after, figures = last
        proxy_sft_BN, gold_sft_BN, _, before, figures_sft = first
        found: dict[str, Any] = {
            f"proxy_{self.name}": _mean(proxy_BN),
            "proxy_sft": _mean(proxy_sft_BN),
            "kl_nats": float(kl_BN.mean()),
            f"end_rate_{self.name}": float(np.mean([answer.ended for answer in after])),
            "end_rate_sft": float(np.mean([answer.ended for answer in before])),
        }
        if gold_BN is not None and gold_sft_BN is not None:
            found |= {f"gold_{self.name}": _mean(gold_BN), "gold_sft": _mean(gold_sft_BN)}
            found |= _gain(gold_BN, gold_sft_BN) | {"best_of_n": _best_of_n(proxy_sft_BN, gold_sft_BN)}
        found |= {f"{name}_{self.name}": _mean(values) for name, values in figures.items()}
        found |= {f"{name}_sft": _mean(values) for name, values in figures_sft.items()}
        found |= {f"{name}_{self.name}": value for name, value in self.chosen(params).items()}
        found |= {f"{name}_sft": value for name, value in self.chosen(reference).items()}
        found["answers"] = self._table(before, after, many, times, gold_sft_BN, gold_BN)
        return found

    def chosen(self, params: Params) -> dict[str, float]:
        """mc1 and mc2 on the prompts that come with given answers."""

        def logps(batch: Any) -> Any:
            return fetch(self._logps(params, {}, put(own_rows(batch, self._share), self._mesh)))

        return self.choices.figures(logps, self._batch_size)

    def scores(self, params: Params, key: jax.Array, times: int) -> Scored:
        """N = `times` answers to each of the B prompts, judged."""
        proxy_BN, kl_BN, found = self.judge.answers(params, self.prompts, key, times)
        if self.program is not None:
            records = [asked.record for asked in self.asked for _ in range(times)]
            figures = program_figures(self.program, records, found)
            gold_BN = figures["reward"].reshape(proxy_BN.shape)
            return Scored(gold_BN if self.judge.scalar is None else proxy_BN, gold_BN, kl_BN, found, figures)
        questions = [asked.question for asked in self.asked for _ in range(times)]
        gold_BN = None
        if all(question is not None for question in questions):
            labeler = self.config.labeler
            golds = [labeler.gold_score(q.name, a.text, a.ended) for q, a in zip(questions, found, strict=True) if q]
            gold_BN = np.reshape(golds, proxy_BN.shape)
        return Scored(proxy_BN, gold_BN, kl_BN, found, {})

    def _table(self, before, after, many: int, times: int, gold_before, gold_after) -> list[dict[str, Any]]:
        rows = []
        for index, asked in enumerate(self.asked[:20]):
            row = {
                "prompt": asked.messages[-1]["content"],
                "reference": str(asked.record.get("answer", "")),
                "sft": before[index * many].text,
                self.name: after[index * times].text,
            }
            if gold_before is not None:
                row |= {"gold_sft": float(gold_before[index, 0]), f"gold_{self.name}": float(gold_after[index, 0])}
            rows.append(row)
        return rows


def _mean(values: np.ndarray) -> float:
    """Over the answers that have a figure; NaN if none has."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _gain(after_BN: np.ndarray, before_BM: np.ndarray) -> dict[str, Any]:
    """What the gold score gained, over the prompts that have one before and after, and its interval."""
    paired_B = np.isfinite(after_BN).any(1) & np.isfinite(before_BM).any(1)
    if paired_B.sum() < 2:
        return {}
    gains_B = np.nanmean(after_BN[paired_B], axis=1) - np.nanmean(before_BM[paired_B], axis=1)
    gain, low, high = clustered_mean(gains_B[:, None])
    return {"gold_gain": gain, "gold_gain_ci": [low, high]}


def _best_of_n(proxy_BN: np.ndarray, gold_BN: np.ndarray) -> list[dict[str, float]]:
    """Gold and proxy score of the best of n = 1, 2, 4, ... answers, over the prompts all of whose answers have both."""
    whole_B = np.isfinite(proxy_BN).all(1) & np.isfinite(gold_BN).all(1)
    if not whole_B.any():
        return []
    proxy_BN, gold_BN = proxy_BN[whole_B], gold_BN[whole_B]
    return [
        {
            "n": n,
            "kl_nats": best_of_n_kl(n),
            "gold": best_of_n(proxy_BN, gold_BN, n),
            "proxy": best_of_n(proxy_BN, proxy_BN, n),
        }
        for n in (2**power for power in range(proxy_BN.shape[1].bit_length()))
    ]
