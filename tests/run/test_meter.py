"""Throughput, by a clock that the test sets."""

import itertools

from gptjax.run.meter import Meter


def test_meter_divides_by_the_time_of_its_window():
    # began 0, read at 10: 2 steps and 40 tokens in 10 s; the next window begins at 10
    times = iter([0.0, 10.0, 10.0, 12.0, 12.0])
    meter = Meter(clock=lambda: next(times))
    for _ in range(2):
        meter.step(tokens=20)
    assert meter.read() == {"perf/tokens_per_second": 4.0, "perf/seconds_per_step": 5.0}
    assert meter.read() == {}


def test_restart_forgets_a_pause():
    times = itertools.count(0.0, 1.0)
    meter = Meter(clock=lambda: next(times))
    meter.step(tokens=100)
    meter.restart()
    meter.step(tokens=3)
    assert meter.read()["perf/tokens_per_second"] == 3.0


def test_mfu_is_model_flops_over_the_peak_of_all_devices():
    # 100 tokens of 6e9 FLOPs in 2 s are 3e11 FLOP/s; of a peak of 1.2e12 that is a quarter
    times = iter([0.0, 2.0, 2.0, 4.0, 4.0])
    meter = Meter(6e9, 1.2e12, clock=lambda: next(times))
    meter.step(tokens=100)
    found = meter.read()
    assert (found["perf/model_flops_per_second"], found["perf/mfu"]) == (3e11, 0.25)


def test_an_unknown_device_has_no_mfu_and_an_uncounted_step_no_flops():
    times = iter([0.0, 2.0, 2.0])
    meter = Meter(6e9, None, clock=lambda: next(times))
    meter.step(tokens=100)
    found = meter.read()
    assert "perf/model_flops_per_second" in found
    assert "perf/mfu" not in found
    times = iter([0.0, 2.0, 2.0])
    uncounted = Meter(None, 1.2e12, clock=lambda: next(times))
    uncounted.step(tokens=100)
    assert not {"perf/mfu", "perf/model_flops_per_second"} & set(uncounted.read())
