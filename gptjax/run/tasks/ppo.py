"""PPO: prompts, a policy, a reward model -> a policy whose answers score higher."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.data.labeler import SimulatedLabeler
from gptjax.data.loader import batch_at
from gptjax.data.prompts import prompt_batch
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model, value_head
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.task import Setup, Task
from gptjax.run.tasks import lm
from gptjax.run.tasks.asked import asked_prompts
from gptjax.run.tasks.corpus import corpus, packed_rows
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.upstream import check_model, inherited_tokenizer, load_params, load_policy
from gptjax.train.normalise import absorbed
from gptjax.train.ppo import initial_extra, ppo_step, served_policy
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.reference import Holding, held, upper_layers, with_frozen_layers
from gptjax.train.rollout import collect
from gptjax.train.update import initial_state
from gptjax.types import Model, Params, PpoBatch


@dataclass(frozen=True, kw_only=True)
class PpoTask:
    """Reinforcement learning from a reward model.

    policy_from: stage or folder whose weights policy and reference start with.  reward_from: stage or folder of the
    reward model, which a separate value model starts from too.
    prompts: JSON lines of {"messages": [...]}; None: questions about this Python's library.
    heldout_prompts, heldout_samples: prompts never trained on, and answers to each, when the policy is examined.
    best_of: samples per prompt of the best-of-n comparison.  prompt_tokens: P, longer prompts are left out.
    ppo: the algorithm's settings.  value_optimizer: of a separate value model (None: as the policy's).
    reference: copy, bfloat16 (half the memory) or host (pinned host memory, fetched for each rollout).
    frozen_layers: lowest layers that, with the embeddings, are never trained; the reference then shares them.
    pretrain: corpus settings of PPO-ptx's rows, as in pre-training; read only if ppo.ptx_coefficient is above 0.
    labeler: the simulated labeler whose noise-free score is reported as gold, with the default questions.
    """

    policy_from: str = "sft"
    reward_from: str = "reward"
    prompts: Path | None = None
    heldout_prompts: int = 128
    heldout_samples: int = 4
    best_of: int = 16
    prompt_tokens: int = 64
    ppo: PpoConfig = PpoConfig()
    value_optimizer: OptimizerConfig | None = None
    reference: Holding = "copy"
    frozen_layers: int = 0
    pretrain: lm.LmTask = lm.LmTask()
    labeler: SimulatedLabeler = SimulatedLabeler()

    def __post_init__(self) -> None:
        if self.frozen_layers < 0:
            raise ValueError(f"task.frozen_layers must not be negative, got {self.frozen_layers}")
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
    policy_folder, reward_folder = map(setup.stage_folder, (config.policy_from, config.reward_from))
    for folder in (policy_folder, reward_folder):
        check_model(folder, setup.model)
    tokenizer = inherited_tokenizer(policy_folder, setup)
    policy, scalar = language_model(setup.model), scalar_model(setup.model)
    head = value_head(setup.model) if config.ppo.value_model == "head" else None
    first = load_policy(policy, policy_folder, setup.mesh)
    reward, norm = load_params(scalar, reward_folder, setup.mesh, ("reward_gain", "reward_bias"))
    frozen_models = {"reference": _reference(config, first, policy), "reward": reward} | norm
    tx = _optimizers(config, setup, {"policy": policy, "value": head or scalar})
    train, heldout = asked_prompts(config.prompts)
    prompts, _ = prompt_batch([messages for messages, _ in train], tokenizer, config.prompt_tokens)
    pretrain = _pretrain_rows(config, tokenizer)
    key = jax.random.key(setup.seed)

    def state_of(policy_params, value_params, key):
        params = {"policy": policy_params, "value": value_params}
        return initial_state(params, tx, key, **initial_extra(config.ppo, policy_params))

    def init(key):
        return state_of(policy.init(key), (head or scalar).init(jax.random.fold_in(key, 2)), jax.random.fold_in(key, 1))

    def start(state):
        @jax.jit
        def begin(first, reward, norm, key):
            copy = jax.tree.map(jnp.copy, first)  # what gets updated must not be buffers that others hold
            own = jax.tree.map(jnp.copy, absorbed(reward, norm)) if head is None else head.init(jax.random.key(0))
            return state_of(copy, own, jax.random.wrap_key_data(key))

        return begin(first, reward, norm, state.key)

    def data(position):
        batch = batch_at(prompts, position, config.ppo.prompts, setup.seed)
        n_rows = config.ppo.prompts * config.ppo.ptx_rows
        rows = None if pretrain is None else batch_at(pretrain, position, n_rows, setup.seed + 1)
        return PpoBatch(prompts=batch, pretrain=rows)

    sampling = SamplingConfig(max_new_tokens=config.ppo.response_tokens, temperature=config.ppo.temperature)
    about = {"policy": policy, "scalar": scalar, "head": head, "config": config.ppo}
    examination = Examination(config, setup, tokenizer, policy, scalar, frozen_models, heldout, sampling, name="ppo")

    def finish(state):
        found = examination.full(served_policy(state), key)
        served = "last" if config.ppo.average_decay is None else "average"
        return state, found | {"kl_target_nats": config.ppo.kl_target, "policy_weights": served}

    return Task(
        init=init,
        start=start,
        data=data,
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


def _reference(config: PpoTask, params: Params, policy: Model) -> Any:
    """The reference as it is kept; never the buffers that `params` are."""
    if config.frozen_layers:
        return held(upper_layers(params, policy, config.frozen_layers), config.reference)
    return held(params, config.reference)


def _optimizers(config: PpoTask, setup: Setup, models: dict[str, Any]) -> optax.GradientTransformation:
    """A separate value model has clipping, learning rate and moments of its own; a head shares the policy's."""
    roles = {name: model.roles for name, model in models.items()}
    letters = {name: model.letters for name, model in models.items()}
    by_mup = models["policy"].ratios is not None
    ratios = {name: model.ratios for name, model in models.items()} if by_mup else None
    if config.ppo.value_model == "head":
        tx = optimizer(setup.optimizer, setup.steps, roles, letters, ratios)
    else:
        own = {"policy": setup.optimizer, "value": config.value_optimizer or setup.optimizer}
        tx = optax.partition(
            {name: optimizer(chosen, setup.steps, roles, letters, ratios) for name, chosen in own.items()},
            {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in roles.items()},
        )
    return with_frozen_layers(tx, models["policy"], config.frozen_layers) if config.frozen_layers else tx


def _pretrain_rows(config: PpoTask, tokenizer: Any) -> Any:
    if config.ppo.ptx_coefficient == 0.0:
        return None
    train, _ = corpus(config.pretrain)
    return packed_rows(train, tokenizer, config.pretrain)[0]
