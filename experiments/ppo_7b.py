"""PPO of a 7B policy with value, reward and reference models of the same size on 64 v5p chips.

    gptjax plan experiments/ppo_7b.py --topology v5p:4x4x4

256 prompts of 512 tokens with answers of up to 512; the reference is kept in bfloat16. `policy_from` and `reward_from`
name folders of trained stages. Planned, never run: docs/scale.md.
"""

from gptjax.model.presets import preset
from gptjax.optim.optimizer import OptimizerConfig
from gptjax.run.experiment import Experiment
from gptjax.run.mesh import MeshConfig
from gptjax.run.tasks.ppo import PpoTask
from gptjax.train.ppo_config import PpoConfig


def experiment() -> Experiment:
    settings = PpoConfig(minibatches=4, response_tokens=512, kl_coefficient=0.02)
    return Experiment(
        task=PpoTask(ppo=settings, prompt_tokens=512, reference="bfloat16"),
        model=preset("llama2-7b", dtype="bfloat16", remat="full"),
        optimizer=OptimizerConfig(peak_lr=9e-6, schedule="constant", warmup_steps=16),
        mesh=MeshConfig(data=1, fsdp=64),
        steps=1000,
        batch_size=256,
        save_every=100,
    )
