"""Presets hold the figures of their papers."""

from gptjax.run.tasks.reward_presets import PRESETS


def test_presets_say_what_their_papers_say():
    instruct, ziegler, n_plus = (PRESETS[name] for name in ("instructgpt", "ziegler", "n_plus"))
    assert (instruct.optimizer.peak_lr, instruct.optimizer.schedule, instruct.batch_size) == (9e-6, "cosine", 64)
    assert (instruct.optimizer.final_fraction, instruct.optimizer.b2, instruct.epochs) == (0.1, 0.95, 1)
    assert (ziegler.optimizer.peak_lr, ziegler.optimizer.schedule, ziegler.batch_size) == (5e-5, "linear", 32)
    assert (ziegler.optimizer.final_fraction, ziegler.reward.objective) == (0.0, "choice")
    # the optimizers of both repositories: default moments, epsilon 1e-5, no clipping; TensorFlow's epsilon in the first
    for preset, mode in ((ziegler, "tf"), (n_plus, "paper")):
        about = preset.optimizer
        assert (about.b1, about.b2, about.eps, about.eps_mode, about.clip_norm) == (0.9, 0.999, 1e-5, mode, None)
    assert (n_plus.optimizer.peak_lr, n_plus.optimizer.eps, n_plus.batch_size) == (3e-6, 1e-5, 64)
    assert (instruct.steps(33_207), instruct.steps(5)) == (518, 1)  # InstructGPT's 33,207 training prompts
