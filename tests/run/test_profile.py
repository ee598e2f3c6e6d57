"""Traces of chosen steps."""

import jax
import jax.numpy as jnp

from gptjax.run.profile import StepProfile


def run(profile, steps):
    """Which of the steps were traced: the trace is open between their begin and their end."""
    traced = []
    for number in steps:
        profile.begin(number)
        traced.append(profile._tracing)
        profile.end(number, jnp.ones(()) + number)
    return [number for number, on in zip(steps, traced, strict=True) if on]


def test_the_steps_asked_for_are_traced_into_one_file(tmp_path):
    assert run(StepProfile((2, 3), tmp_path / "profile"), [1, 2, 3, 4]) == [2, 3]
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    jax.profiler.start_trace(str(tmp_path / "other"))  # none is open any more
    jax.profiler.stop_trace()


def test_without_steps_nothing_is_written(tmp_path):
    assert run(StepProfile(None, tmp_path / "profile"), [1, 2]) == []
    assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_early_still_writes_what_it_traced(tmp_path):
    profile = StepProfile((2, 9), tmp_path / "profile")
    assert run(profile, [1, 2]) == [2]
    profile.close()
    profile.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
