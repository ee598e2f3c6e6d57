"""GRPO and RLOO: prompts, a policy, a reward model -> a policy whose answers score higher, without a value model."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from gptjax.data.labeler import SimulatedLabeler
from gptjax.data.loader import batch_at
from gptjax.data.prompts import prompt_batch
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.task import Setup, Task
from gptjax.run.tasks.asked import asked_prompts
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.upstream import check_model, inherited_tokenizer, load_params
from gptjax.train.group_rollout import collect_groups
from gptjax.train.grpo import GrpoConfig, grpo_step
from gptjax.train.update import initial_state


@dataclass(frozen=True, kw_only=True)
class GrpoTask:
    """Reinforcement learning on groups of answers to the same prompt; grpo.loss chooses GRPO or RLOO.

    policy_from: stage or folder whose weights policy and reference start with.  reward_from: that of the reward model.
    prompts: JSON lines of {"messages": [...]}; None: questions about this Python's library.
    heldout_prompts, heldout_samples: prompts never trained on, and answers to each, when the policy is examined.
    best_of: samples per prompt of the best-of-n comparison.  prompt_tokens: P, longer prompts are left out.
    grpo: the algorithm's settings.
    labeler: the simulated labeler whose noise-free score is reported as gold, with the default questions.
    """

    policy_from: str = "sft"
    reward_from: str = "reward"
    prompts: Path | None = None
    heldout_prompts: int = 128
    heldout_samples: int = 4
    best_of: int = 16
    prompt_tokens: int = 64
    grpo: GrpoConfig = GrpoConfig()
    labeler: SimulatedLabeler = SimulatedLabeler()


def build(config: GrpoTask, setup: Setup) -> Task:
    """The task, with its prompts rendered and its three models at hand."""
    settings = config.grpo
    if setup.batch_size != settings.prompts:
        raise ValueError(
            f"batch_size {setup.batch_size} differs from task.grpo.prompts {settings.prompts}: make them equal"
        )
    if setup.steps % settings.updates:
        raise ValueError(f"steps {setup.steps} is no multiple of the {settings.updates} updates made on each rollout")
    policy_folder, reward_folder = map(setup.stage_folder, (config.policy_from, config.reward_from))
    for folder in (policy_folder, reward_folder):
        check_model(folder, setup.model)
    tokenizer = inherited_tokenizer(policy_folder, setup)
    policy, scalar = language_model(setup.model), scalar_model(setup.model)
    reference, _ = load_params(policy, policy_folder, setup.mesh)
    reward, norm = load_params(scalar, reward_folder, setup.mesh, ("reward_gain", "reward_bias"))
    frozen_models = {"reference": reference, "reward": reward} | norm
    tx = optimizer(setup.optimizer, setup.steps, policy.roles, policy.letters, policy.ratios)
    train, heldout = asked_prompts(config.prompts)
    prompts, _ = prompt_batch([messages for messages, _ in train], tokenizer, config.prompt_tokens)
    sampling = SamplingConfig(max_new_tokens=settings.response_tokens, temperature=settings.temperature)
    examination = Examination(config, setup, tokenizer, policy, scalar, frozen_models, heldout, sampling, name="grpo")
    key = jax.random.key(setup.seed)

    def start(state):
        @jax.jit
        def begin(params, key):  # the reference must not be the buffers that get updated
            return initial_state(jax.tree.map(jnp.copy, params), tx, jax.random.wrap_key_data(key))

        return begin(reference, state.key)

    return Task(
        init=lambda key: initial_state(policy.init(key), tx, jax.random.fold_in(key, 1)),
        start=start,
        data=lambda position: batch_at(prompts, position, settings.prompts, setup.seed),
        collect=partial(collect_groups, policy=policy, scalar=scalar, config=settings, end_id=tokenizer.end_id),
        frozen_models=frozen_models,
        step=partial(grpo_step, policy=policy, optimizer=tx, config=settings),
        updates_per_batch=settings.updates,
        evaluate=lambda state: examination.brief(state.params, key),
        finish=lambda state: (state, examination.full(state.params, key)),
        tokens="grpo/tokens",
        loss="grpo/score",
        data_fingerprint=f"{prompts.tokens_BP.shape[0]}-{tokenizer.fingerprint[:16]}",
    )
