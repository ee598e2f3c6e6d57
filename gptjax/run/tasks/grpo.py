"""GRPO and RLOO: prompts, a policy, a reward -> a policy whose answers score higher, without a value model."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from gptjax.data.loader import batch_at
from gptjax.data.prompts import prompt_batch
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import scalar_model
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.asked import PolicyTask, asked_prompts
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.program import answering
from gptjax.run.tasks.upstream import (
    abstract_prompts,
    check_model,
    fresh_reward,
    inherited_tokenizer,
    load_params,
    reward_model,
    trained_model,
)
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
    _check_sizes(config, setup)
    policy_folder = setup.stage_folder(config.policy_from)
    check_model(policy_folder, setup.model)
    tokenizer = inherited_tokenizer(policy_folder, setup)
    made = outline(config, setup, end_id=tokenizer.end_id)
    (policy, tx), scalar = trained_model(setup), scalar_model(setup.model)
    reference, _ = load_params(policy, policy_folder, setup.mesh)
    frozen_models = {"reference": reference} | reward_model(config.reward_from, setup)
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
        init=made.init,
        start=start,
        data=lambda position: batch_at(prompts, position, settings.prompts, setup.seed, setup.share),
        answered=None if answer is None else lambda s, batch, *rest: answer(s.params, s.frozen, batch, *rest),
        collect=made.collect,
        frozen_models=frozen_models,
        step=made.step,
        updates_per_batch=made.updates_per_batch,
        evaluate=lambda state: examination.brief(state.params, key),
        finish=lambda state: (state, examination.full(state.params, key)),
        tokens="grpo/tokens",
        loss="grpo/score",
        data_fingerprint=f"{prompts.tokens_BP.shape[0]}-{tokenizer.fingerprint[:16]}",
    )


def outline(config: GrpoTask, setup: Setup, *, end_id: int = 0) -> Outline:
    """The task without its prompts and with models that were never trained.

    Answers that a program scores are drawn before `collect` and are no part of it.

    Args:
        config: the task's settings.
        setup: of the stage.
        end_id: the end-of-turn token; which one makes no difference to the size of the program.

    Raises:
        ValueError: the numbers of prompts, minibatches and steps do not go together.
    """
    settings = config.grpo
    _check_sizes(config, setup)
    (policy, tx), scalar = trained_model(setup), scalar_model(setup.model)
    rows, length = settings.prompts * settings.group_size, config.prompt_tokens + settings.response_tokens
    forward = setup.model.forward_flops_per_token(length)
    drawing = forward + setup.model.forward_flops_per_token(length, scalar=True)  # sampling, reward
    given = config.reward_program is not None
    trained = rows * length // settings.minibatches

    return Outline(
        init=lambda key: initial_state(policy.init(key), tx, jax.random.fold_in(key, 1)),
        step=partial(grpo_step, policy=policy, optimizer=tx, config=settings),
        batch=abstract_prompts(
            settings.prompts,
            config.prompt_tokens,
            given=(rows, settings.response_tokens) if given else None,
        ),
        collect=partial(collect_groups, policy=policy, scalar=scalar, config=settings, end_id=end_id),
        frozen_models=lambda key: {"reference": policy.init(key)} | fresh_reward(config.reward_from, scalar, key),
        updates_per_batch=settings.updates,
        step_tokens=trained,
        step_flops=3 * forward * trained,
        collect_tokens=rows * length,
        collect_flops=rows * length * (2 * forward + (0.0 if given else drawing)),  # sampling policy, reference
    )


def _check_sizes(config: GrpoTask, setup: Setup) -> None:
    settings = config.grpo
    if setup.batch_size != settings.prompts:
        raise ValueError(
            f"batch_size {setup.batch_size} differs from task.grpo.prompts {settings.prompts}: make them equal"
        )
    if setup.steps % settings.updates:
        raise ValueError(f"steps {setup.steps} is no multiple of the {settings.updates} updates made on each rollout")
