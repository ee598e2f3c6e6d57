"""PPO: prompts, a policy, a reward -> a policy whose answers score higher."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.choices import check_numbers
from gptjax.data.loader import batch_at
from gptjax.generate.engine import SamplingConfig
from gptjax.model.pure import language_model, scalar_model, value_head
from gptjax.model_types import Model, ScalarModel, ValueHead
from gptjax.optim.optimizer import OptimizerConfig, optimizer
from gptjax.run.task import Outline, Setup, Task
from gptjax.run.tasks.asked import PromptedTask, prompted
from gptjax.run.tasks.examination import Examination
from gptjax.run.tasks.outlines import abstract_prompts, abstract_rows, first_state, fresh_reward
from gptjax.run.tasks.program import answering
from gptjax.run.tasks.rows import RowsConfig
from gptjax.run.tasks.tax import pretraining
from gptjax.run.tasks.upstream import inherited, load_policy, reward_model
from gptjax.train.normalise import absorbed
from gptjax.train.ppo import initial_extra, ppo_step, served_policy
from gptjax.train.ppo_config import PpoConfig
from gptjax.train.reference import Holding, held, reference_params, upper_layers, with_frozen_layers
from gptjax.train.rollout import collect
from gptjax.types import Params, PpoBatch, TrainState


@dataclass(frozen=True, kw_only=True)
class PpoTask(PromptedTask):
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
    pretrain: RowsConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "task", not_negative=("frozen_layers",))
        if self.ppo.ptx_coefficient > 0 and self.pretrain is None:
            raise ValueError(
                f"task.ppo.ptx_coefficient is {self.ppo.ptx_coefficient}, but task.pretrain is None: give its corpus"
            )
        if self.value_optimizer is not None and self.ppo.value_model == "head":
            raise ValueError(
                "task.value_optimizer is set, but task.ppo.value_model is 'head': the policy's serves both"
            )


class Models(NamedTuple):
    """scalar: of reward and value.  head: of values, where they share the policy's trunk."""

    policy: Model
    scalar: ScalarModel
    head: ValueHead | None
    optimizer: optax.GradientTransformation


def build(config: PpoTask, setup: Setup) -> Task:
    """The task, with its prompts rendered and its four models at hand."""
    policy_folder, tokenizer = inherited(config.policy_from, setup)
    made = outline(config, setup, end_id=tokenizer.end_id)
    policy, scalar, *_ = models = _models(config, setup)
    first = partial(load_policy, policy, policy_folder, setup.mesh)  # read anew for each use: a state owns its buffers
    reward = reward_model(config.reward_from, setup)
    frozen_models = {"reference": _reference(config, first(), policy)} | reward
    prompts, records, heldout, fingerprint = prompted(config, tokenizer)
    sampling = SamplingConfig(max_new_tokens=config.ppo.response_tokens, temperature=config.ppo.temperature)
    examination = Examination(config, setup, tokenizer, policy, scalar, frozen_models, heldout, sampling, name="ppo")
    answer = answering(config.reward_program, records, tokenizer, policy, setup, sampling)
    text = None if config.pretrain is None else pretraining(config.pretrain, tokenizer, policy, setup)
    begin, key = jax.jit(partial(_begun, config, models), donate_argnums=0), jax.random.key(setup.seed)

    def data(position):
        batch = batch_at(prompts, position, setup.batch_size, setup.seed, setup.share)
        n_rows, _ = _ptx(config, setup)
        rows = text.draw(position, n_rows, setup.seed + 1, setup.share) if text is not None and n_rows else None
        return PpoBatch(prompts=batch, pretrain=rows)

    def answered(state, batch, key, position):
        assert answer is not None
        return replace(batch, prompts=answer(state.params["policy"], state.frozen, batch.prompts, key, position))

    def finish(state):
        params = served_policy(state)
        found = examination.full(params, key)
        if text is not None:
            before = text.bits_per_byte(state, reference_params(frozen_models["reference"], params))
            after = text.bits_per_byte(state, params)
            found |= {"bits_per_byte_sft": before, "bits_per_byte_ppo": after, "bits_per_byte_change": after - before}
        served = "last" if config.ppo.average_decay is None else "average"
        return state, found | {"kl_target_nats": config.ppo.kl_target, "policy_weights": served}

    return Task(
        init=made.init,
        start=lambda key: begin(first(), reward, key),
        data=data,
        answered=None if answer is None else answered,
        collect=made.collect,
        frozen_models=frozen_models,
        step=made.step,
        updates_per_batch=made.updates_per_batch,
        evaluate=lambda state: examination.brief(served_policy(state), key),
        finish=finish,
        tokens="ppo/tokens",
        loss="ppo/score",
        data_fingerprint=fingerprint if text is None else f"{text.fingerprint}-{fingerprint}",
    )


def outline(config: PpoTask, setup: Setup, *, end_id: int = 0) -> Outline:
    """The task without its prompts and with models that were never trained.

    Answers that a program scores are drawn before `collect` and are no part of it.

    Args:
        config: the task's settings.
        setup: of the stage.
        end_id: the end-of-turn token; which one makes no difference to the size of the program.
    """
    policy, scalar, head, tx = _models(config, setup)
    about = {"policy": policy, "scalar": scalar, "head": head, "config": config.ppo}
    ppo, value = config.ppo, head or scalar

    def init(key):
        value_params = value.init(jax.random.fold_in(key, 2))
        return _state(config, tx, policy.init(key), value_params, key)

    def frozen_models(key):
        reference = _reference(config, policy.init(key), policy)
        return {"reference": reference} | fresh_reward(config.reward_from, scalar, key)

    ptx_rows, row_tokens = _ptx(config, setup)
    given = None if config.reward_program is None else (setup.batch_size, ppo.response_tokens)
    tokens = setup.batch_size * (config.prompt_tokens + ppo.response_tokens)
    step_flops, collect_flops = _flops(config, setup, tokens)
    return Outline(
        init=init,
        step=partial(ppo_step, **about, optimizer=tx),
        batch=PpoBatch(
            prompts=abstract_prompts(setup.batch_size, config.prompt_tokens, given=given),
            pretrain=abstract_rows(ptx_rows, row_tokens) if ptx_rows else None,
        ),
        collect=partial(collect, **about, end_id=end_id),
        frozen_models=frozen_models,
        updates_per_batch=ppo.updates,
        step_tokens=(tokens + ptx_rows * row_tokens) // ppo.minibatches,
        step_flops=step_flops,
        collect_tokens=tokens,
        collect_flops=collect_flops,
    )


def _flops(config: PpoTask, setup: Setup, tokens: int) -> tuple[float, float]:
    """Model FLOPs of an update and of a rollout over `tokens` positions."""
    ppo, model = config.ppo, setup.model
    length = config.prompt_tokens + ppo.response_tokens
    policy, judge = (model.forward_flops_per_token(length, scalar=scalar) for scalar in (False, True))
    value = judge if ppo.value_model == "separate" else 0.0
    rows, row_tokens = _ptx(config, setup)
    step = 3 * tokens * (policy + value) + rows * row_tokens * model.train_flops_per_token(row_tokens)
    drawing = policy + judge if config.reward_program is None else 0.0  # sampling, reward
    return step / ppo.minibatches, tokens * (drawing + 2 * policy + value)  # sampling policy, reference


def _ptx(config: PpoTask, setup: Setup) -> tuple[int, int]:
    """(pre-training rows of a rollout's updates, tokens of each); 0 without PPO-ptx."""
    if config.pretrain is None or config.ppo.ptx_coefficient == 0:
        return 0, 0
    return setup.batch_size * config.ppo.ptx_rows, config.pretrain.row_tokens


def _models(config: PpoTask, setup: Setup) -> Models:
    policy, scalar = language_model(setup.model), scalar_model(setup.model)
    head = value_head(setup.model) if config.ppo.value_model == "head" else None
    return Models(policy, scalar, head, _optimizers(config, setup, {"policy": policy, "value": head or scalar}))


def _state(config: PpoTask, tx: Any, policy_params: Params, value_params: Params, key: jax.Array) -> TrainState:
    params = {"policy": policy_params, "value": value_params}
    return first_state(params, tx, key, **initial_extra(config.ppo, policy_params))


def _begun(config: PpoTask, models: Models, first: Params, reward: dict[str, Any], key: jax.Array) -> TrainState:
    """The state of a policy that was trained before."""
    _, scalar, head, tx = models
    own = _first_values(scalar, first, reward) if head is None else head.init(jax.random.key(0))
    return _state(config, tx, first, own, key)


def _first_values(scalar: Any, policy_params: Params, reward: dict[str, Any]) -> Params:
    """The value model's first parameters: the reward model's or, without one, the policy's and a head of zeros."""
    if reward:
        norm = {name: reward[name] for name in ("reward_gain", "reward_bias")}
        return jax.tree.map(jnp.copy, absorbed(reward["reward"], norm))
    fresh = jax.tree.map(jnp.zeros_like, scalar.init(jax.random.key(0)))
    return fresh | {"trunk": {name: jax.tree.map(jnp.copy, policy_params[name]) for name in fresh["trunk"]}}


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
