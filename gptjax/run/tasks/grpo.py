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
from gptjax.model.pure import scalar_model
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.asked import asked_prompts
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.upstream import abstract_prompts, check_model, inherited_tokenizer, load_params, trained_model
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
    policy_folder, reward_folder = map(setup.stage_folder, (config.policy_from, config.reward_from))
    for folder in (policy_folder, reward_folder):
        check_model(folder, setup.model)
    tokenizer = inherited_tokenizer(policy_folder, setup)
    made = outline(config, setup, end_id=tokenizer.end_id)
    (policy, tx), scalar = trained_model(setup), scalar_model(setup.model)
    reference, _ = load_params(policy, policy_folder, setup.mesh)
    reward, norm = load_params(scalar, reward_folder, setup.mesh, ("reward_gain", "reward_bias"))
    frozen_models = {"reference": reference, "reward": reward} | norm
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
        init=made.init,
        start=start,
        data=lambda position: batch_at(prompts, position, settings.prompts, setup.seed),
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

    Args:
        config: the task's settings.
        setup: of the stage.
        end_id: the end-of-turn token; which one makes no difference to the size of the program.

    Raises:
        ValueError: the numbers of prompts, minibatches and steps do not go together.
    """
    settings = config.grpo
    if setup.batch_size != settings.prompts:
        raise ValueError(
            f"batch_size {setup.batch_size} differs from task.grpo.prompts {settings.prompts}: make them equal"
        )
    if setup.steps % settings.updates:
        raise ValueError(f"steps {setup.steps} is no multiple of the {settings.updates} updates made on each rollout")
    (policy, tx), scalar = trained_model(setup), scalar_model(setup.model)
    rows, length = settings.prompts * settings.group_size, config.prompt_tokens + settings.response_tokens
    forward = setup.model.forward_flops_per_token(length)
    judge = setup.model.forward_flops_per_token(length, unembedding=False)
    trained = rows * length // settings.minibatches

    def frozen_models(key):
        models = {"reference": policy.init(key), "reward": scalar.init(key)}
        return models | {"reward_gain": jnp.ones(()), "reward_bias": jnp.zeros(())}

    return Outline(
        init=lambda key: initial_state(policy.init(key), tx, jax.random.fold_in(key, 1)),
        step=partial(grpo_step, policy=policy, optimizer=tx, config=settings),
        batch=abstract_prompts(settings.prompts, config.prompt_tokens),
        collect=partial(collect_groups, policy=policy, scalar=scalar, config=settings, end_id=end_id),
        frozen_models=frozen_models,
        updates_per_batch=settings.updates,
        step_tokens=trained,
        step_flops=3 * forward * trained,
        collect_tokens=rows * length,
        collect_flops=rows * length * (3 * forward + judge),  # sampling, sampling policy, reference; reward
    )
