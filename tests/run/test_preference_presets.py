"""The presets of DPO and GRPO against the published figures, written out."""

from gptjax.run.tasks.preference_presets import deepseekmath, dpo


def test_dpo_has_the_published_figures():
    found = dpo()
    assert (found.dpo.beta, found.dpo.kind, found.batch_size) == (0.1, "sigmoid", 64)
    about = found.optimizer
    assert (about.name, about.peak_lr, about.warmup_steps, about.schedule) == ("rmsprop", 1e-6, 150, "constant")


def test_deepseekmath_has_the_published_figures():
    found = deepseekmath()
    grpo, optimizer = found.grpo, found.optimizer
    assert (grpo.group_size, grpo.kl_coefficient, grpo.response_tokens, optimizer.peak_lr) == (64, 0.04, 1024, 1e-6)
    assert (found.batch_size * grpo.group_size, grpo.updates) == (1024, 1)  # a batch of 1,024, a single update
    assert not grpo.kl_in_reward
