"""GRPO and RLOO: prompts, a policy, a reward -> a policy whose answers score higher, without a value model."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from gptjax.data.loader import batch_at
from gptjax.data.prompts import prompt_batch
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.optim.optimizer import optimizer
from gptjax.run.task import Setup, Task
from gptjax.run.tasks.asked import PolicyTask, asked_prompts
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.program import answering
from gptjax.run.tasks.upstream import check_model, inherited_tokenizer, load_params, reward_model
from gptjax.train.group_rollout import collect_groups
from gptjax.train.grpo import GrpoConfig, grpo_step
from gptjax.train.update import initial_state


@dataclass(frozen=True, kw_only=True)
class GrpoTask(PolicyTask):
    """Reinforcement learning on groups of answers to the same prompt; grpo.loss chooses GRPO or RLOO.

    grpo: the algorithm's settings.
    """

    grpo: GrpoConfig = GrpoConfig()


def build(config: GrpoTask, setup: Setup) -> Task:
    """The task, with its prompts rendered and its three models at hand."""
    settings = config.grpo
    if setup.batch_size != settings.prompts:
        raise ValueError(
            f"batch_size {setup.batch_size} differs from task.grpo.prompts {settings.prompts}: make them equal"
        )
    if setup.steps % settings.updates:
        raise ValueError(f"steps {setup.steps} is no multiple of the {settings.updates} updates made on each rollout")
    policy_folder = setup.stage_folder(config.policy_from)
    check_model(policy_folder, setup.model)
    tokenizer = inherited_tokenizer(policy_folder, setup)
    policy, scalar = language_model(setup.model), scalar_model(setup.model)
    reference, _ = load_params(policy, policy_folder, setup.mesh)
    frozen_models = {"reference": reference} | reward_model(config.reward_from, setup)
    tx = optimizer(setup.optimizer, setup.steps, policy.roles, policy.letters)
    train, heldout = asked_prompts(config.prompts)
    prompts, report = prompt_batch([asked.messages for asked in train], tokenizer, config.prompt_tokens)
    sampling = SamplingConfig(max_new_tokens=settings.response_tokens, temperature=settings.temperature)
    examination = Examination(config, setup, tokenizer, policy, scalar, frozen_models, heldout, sampling, name="grpo")
    records = [train[i].record for i in report.kept]
    answer = answering(
        config.reward_program, records, tokenizer, policy, setup, sampling, group_size=settings.group_size
    )
    key = jax.random.key(setup.seed)

    def start(state):
        @jax.jit
        def begin(params, key):  # the reference must not be the buffers that get updated
            return initial_state(jax.tree.map(jnp.copy, params), tx, jax.random.wrap_key_data(key))

        return begin(reference, state.key)

    return Task(
        init=lambda key: initial_state(policy.init(key), tx, jax.random.fold_in(key, 1)),
        start=start,
        data=lambda position: batch_at(prompts, position, settings.prompts, setup.seed, setup.share),
        answered=None if answer is None else lambda s, batch, *rest: answer(s.params, s.frozen, batch, *rest),
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
