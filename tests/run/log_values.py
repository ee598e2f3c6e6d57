"""What a run logged, for comparing two runs bit for bit."""

from gptjax.run.metrics import read_metrics


def log_values(path):
    """(step, metric, value) of a `metrics.jsonl` in order of steps, without `perf/` metrics.

    A value is its repr, which tells apart what == does not (0.0 and -0.0, 1 and 1.0) and holds nan equal to itself.
    """
    return sorted(
        (row["step"], name, repr(value))
        for row in read_metrics(path)
        for name, value in row.items()
        if name != "step" and not name.startswith("perf/")
    )
