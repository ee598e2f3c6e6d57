"""PPO: prompts, a policy, a reward -> a policy whose answers score higher."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.data.loader import batch_at
from gptjax.data.prompts import prompt_batch
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model, value_head
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.task import Setup, Task
from gptjax.run.tasks.asked import PolicyTask, asked_prompts
from gptjax.run.tasks.corpus import CorpusConfig
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.program import answering
from gptjax.run.tasks.tax import pretraining
from gptjax.run.tasks.upstream import check_model, inherited_tokenizer, load_policy, reward_model
from gptjax.train.normalise import absorbed
from gptjax.train.ppo import initial_extra, ppo_step, served_policy
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.reference import Holding, held, reference_params, upper_layers, with_frozen_layers
from gptjax.train.rollout import collect
from gptjax.train.update import initial_state
from gptjax.types import Model, Params, PpoBatch


@dataclass(frozen=True, kw_only=True)
class PpoTask(PolicyTask):
    """Reinforcement learning from a reward model or a program.

    A separate value model starts from the reward model or, with a program, from the policy with a head of zeros.

    ppo: the algorithm's settings.  value_optimizer: of a separate value model (None: as the policy's).
    reference: copy, bfloat16 (half the memory) or host (pinned host memory, fetched for each rollout).
    frozen_layers: lowest layers that, with the embeddings, are never trained; the reference then shares them.
    pretrain: the corpus that PPO-ptx's rows come from (if ppo.ptx_coefficient is above 0) and on whose held-out text
    the policy is examined, before and after.
    """

    ppo: PpoConfig = PpoConfig()
    value_optimizer: OptimizerConfig | None = None
    reference: Holding = "copy"
    frozen_layers: int = 0
    pretrain: CorpusConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen_layers < 0:
            raise ValueError(f"task.frozen_layers must not be negative, got {self.frozen_layers}")
        if self.ppo.ptx_coefficient > 0 and self.pretrain is None:
            raise ValueError(
                f"task.ppo.ptx_coefficient is {self.ppo.ptx_coefficient}, but task.pretrain is None: give its corpus"
            )
        if self.value_optimizer is not None and self.ppo.value_model == "head":
            raise ValueError(
                "task.value_optimizer is set, but task.ppo.value_model is 'head': the policy's serves both"
            )


def build(config: PpoTask, setup: Setup) -> Task:
    """The task, with its prompts rendered and its four models at hand."""
    if setup.batch_size != config.ppo.prompts:
        raise ValueError(
            f"batch_size {setup.batch_size} differs from task.ppo.prompts {config.ppo.prompts}: make them equal"
        )
    if setup.steps % config.ppo.updates:
        raise ValueError(f"steps {setup.steps} is no multiple of the {config.ppo.updates} updates made on each rollout")
    policy_folder = setup.stage_folder(config.policy_from)
    check_model(policy_folder, setup.model)
    tokenizer = inherited_tokenizer(policy_folder, setup)
    policy, scalar = language_model(setup.model), scalar_model(setup.model)
    head = value_head(setup.model) if config.ppo.value_model == "head" else None
    first = load_policy(policy, policy_folder, setup.mesh)
    reward = reward_model(config.reward_from, setup)
    frozen_models = {"reference": _reference(config, first, policy)} | reward
    tx = _optimizers(config, setup, {"policy": policy, "value": head or scalar})
    train, heldout = asked_prompts(config.prompts)
    prompts, report = prompt_batch([asked.messages for asked in train], tokenizer, config.prompt_tokens)
    pretrain, bits_per_byte = None, None
    if config.pretrain is not None:
        pretrain, bits_per_byte = pretraining(config.pretrain, tokenizer, policy, setup)
    key = jax.random.key(setup.seed)

    def state_of(policy_params, value_params, key):
        params = {"policy": policy_params, "value": value_params}
        return initial_state(params, tx, key, **initial_extra(config.ppo, policy_params))

    def init(key):
        return state_of(policy.init(key), (head or scalar).init(jax.random.fold_in(key, 2)), jax.random.fold_in(key, 1))

    def start(state):
        @jax.jit
        def begin(first, reward, key):
            copy = jax.tree.map(jnp.copy, first)  # what gets updated must not be buffers that others hold
            own = _first_values(scalar, first, reward) if head is None else head.init(jax.random.key(0))
            return state_of(copy, own, jax.random.wrap_key_data(key))

        return begin(first, reward, state.key)

    def data(position):
        batch = batch_at(prompts, position, config.ppo.prompts, setup.seed, setup.share)
        n_rows = config.ppo.prompts * config.ppo.ptx_rows
        ptx = pretrain is not None and config.ppo.ptx_coefficient > 0
        rows = None if not ptx else batch_at(pretrain, position, n_rows, setup.seed + 1, setup.share)
        return PpoBatch(prompts=batch, pretrain=rows)

    sampling = SamplingConfig(max_new_tokens=config.ppo.response_tokens, temperature=config.ppo.temperature)
    records = [train[i].record for i in report.kept]
    answer = answering(config.reward_program, records, tokenizer, policy, setup, sampling)

    def answered(state, batch, key, position):
        assert answer is not None
        return replace(batch, prompts=answer(state.params["policy"], state.frozen, batch.prompts, key, position))

    about = {"policy": policy, "scalar": scalar, "head": head, "config": config.ppo}
    examination = Examination(config, setup, tokenizer, policy, scalar, frozen_models, heldout, sampling, name="ppo")

    def finish(state):
        params = served_policy(state)
        found = examination.full(params, key)
        if bits_per_byte is not None:
            before = bits_per_byte(state, reference_params(frozen_models["reference"], params))
            after = bits_per_byte(state, params)
            found |= {"bits_per_byte_sft": before, "bits_per_byte_ppo": after, "bits_per_byte_change": after - before}
        served = "last" if config.ppo.average_decay is None else "average"
        return state, found | {"kl_target_nats": config.ppo.kl_target, "policy_weights": served}

    return Task(
        init=init,
        start=start,
        data=data,
        answered=None if answer is None else answered,
        collect=partial(collect, **about, end_id=tokenizer.end_id),
        frozen_models=frozen_models,
        step=partial(ppo_step, **about, optimizer=tx),
        updates_per_batch=config.ppo.updates,
        evaluate=lambda state: examination.brief(served_policy(state), key),
        finish=finish,
        tokens="ppo/tokens",
        loss="ppo/score",
        data_fingerprint=f"{prompts.tokens_BP.shape[0]}-{tokenizer.fingerprint[:16]}",
    )


def _first_values(scalar: Any, policy_params: Params, reward: dict[str, Any]) -> Params:
    """The value model's first parameters: the reward model's or, without one, the policy's and a head of zeros."""
    if reward:
        norm = {name: reward[name] for name in ("reward_gain", "reward_bias")}
        return jax.tree.map(jnp.copy, absorbed(reward["reward"], norm))
    fresh = jax.tree.map(jnp.zeros_like, scalar.init(jax.random.key(0)))
    return fresh | {"trunk": jax.tree.map(jnp.copy, policy_params)}


def _reference(config: PpoTask, params: Params, policy: Model) -> Any:
    """The reference as it is kept; never the buffers that `params` are."""
    if config.frozen_layers:
        return held(upper_layers(params, policy, config.frozen_layers), config.reference)
    return held(params, config.reference)


def _optimizers(config: PpoTask, setup: Setup, models: dict[str, Any]) -> optax.GradientTransformation:
    """A separate value model has clipping, learning rate and moments of its own; a head shares the policy's."""
    roles = {name: model.roles for name, model in models.items()}
    letters = {name: model.letters for name, model in models.items()}
    if config.ppo.value_model == "head":
        tx = optimizer(setup.optimizer, setup.steps, roles, letters)
    else:
        own = {"policy": setup.optimizer, "value": config.value_optimizer or setup.optimizer}
        tx = optax.partition(
            {name: optimizer(chosen, setup.steps, roles, letters) for name, chosen in own.items()},
            {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in roles.items()},
        )
    return with_frozen_layers(tx, models["policy"], config.frozen_layers) if config.frozen_layers else tx
