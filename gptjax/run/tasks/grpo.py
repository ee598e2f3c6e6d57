"""GRPO and RLOO: prompts, a policy, a reward -> a policy whose answers score higher, without a value model."""

from dataclasses import dataclass
from functools import partial

import jax

from gptjax.data.loader import batch_at
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import scalar_model
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.asked import PromptedTask, prompted
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.outlines import abstract_prompts, fresh_reward, trained_model, untrained
from gptjax.run.tasks.program import answering
from gptjax.run.tasks.upstream import inherited, load_policy, reward_model, started
from gptjax.train.group_rollout import collect_groups
from gptjax.train.grpo import GrpoConfig, grpo_step


@dataclass(frozen=True, kw_only=True)
class GrpoTask(PromptedTask):
    """Reinforcement learning on groups of answers to the same prompt; grpo.loss chooses GRPO or RLOO.

    grpo: the algorithm's settings.
    """

    grpo: GrpoConfig = GrpoConfig()


def build(config: GrpoTask, setup: Setup) -> Task:
    """The task, with its prompts rendered and its three models at hand."""
    settings = config.grpo
    policy_folder, tokenizer = inherited(config.policy_from, setup)
    made = outline(config, setup, end_id=tokenizer.end_id)
    (policy, tx), scalar = trained_model(setup), scalar_model(setup.model)
    reference = load_policy(policy, policy_folder, setup.mesh)
    frozen_models = {"reference": reference} | reward_model(config.reward_from, setup)
    prompts, records, heldout, fingerprint = prompted(config, tokenizer)
    sampling = SamplingConfig(max_new_tokens=settings.response_tokens, temperature=settings.temperature)
    examination = Examination(config, setup, tokenizer, policy, scalar, frozen_models, heldout, sampling, name="grpo")
    answer = answering(
        config.reward_program, records, tokenizer, policy, setup, sampling, group_size=settings.group_size
    )
    key = jax.random.key(setup.seed)

    return Task(
        init=made.init,
        start=started(policy, tx, setup, config.policy_from),
        data=lambda position: batch_at(prompts, position, setup.batch_size, setup.seed, setup.share),
        answered=None if answer is None else lambda s, batch, *rest: answer(s.params, s.frozen, batch, *rest),
        collect=made.collect,
        frozen_models=frozen_models,
        step=made.step,
        updates_per_batch=made.updates_per_batch,
        evaluate=lambda state: examination.brief(state.params, key),
        finish=lambda state: (state, examination.full(state.params, key)),
        tokens="grpo/tokens",
        loss="grpo/score",
        data_fingerprint=fingerprint,
    )


def outline(config: GrpoTask, setup: Setup, *, end_id: int = 0) -> Outline:
    """The task without its prompts and with models that were never trained.

    Answers that a program scores are drawn before `collect` and are no part of it.

    Args:
        config: the task's settings.
        setup: of the stage.
        end_id: the end-of-turn token; which one makes no difference to the size of the program.
    """
    settings = config.grpo
    (policy, tx), scalar = trained_model(setup), scalar_model(setup.model)
    rows, length = setup.batch_size * settings.group_size, config.prompt_tokens + settings.response_tokens
    forward = setup.model.forward_flops_per_token(length)
    drawing = forward + setup.model.forward_flops_per_token(length, scalar=True)  # sampling, reward
    given = config.reward_program is not None
    trained = rows * length // settings.minibatches

    return Outline(
        init=untrained(policy, tx),
        step=partial(grpo_step, policy=policy, optimizer=tx, config=settings),
        batch=abstract_prompts(
            setup.batch_size,
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
