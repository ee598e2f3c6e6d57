"""The metrics log survives kills and compares bit for bit."""

import errno
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.run.metrics import MetricsLog, read_metrics


def log_of(folder, rows):
    with MetricsLog(folder) as log:
        for step, metrics in rows:
            log.write(step, metrics)
    return folder / "metrics.jsonl"


def test_each_row_is_one_json_object_that_is_on_disk_at_once(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"lm/nats_per_token": 3.25, "lm/tokens": np.int32(8)})
        log.write(2, {"lm/nats_per_token": jnp.float32(3.0)})
        text = (tmp_path / "metrics.jsonl").read_text()
    first = '{"step": 1, "lm/nats_per_token": 3.25, "lm/tokens": 8}\n'
    assert text == first + '{"step": 2, "lm/nats_per_token": 3.0}\n'


def test_float32_values_come_back_exactly(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    path = log_of(tmp_path, [(0, {f"m/{i}": value for i, value in enumerate(values)})])
    back = np.array([read_metrics(path)[0][f"m/{i}"] for i in range(len(values))], np.float32)
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


def test_bfloat16_and_non_finite_values_come_back(tmp_path):
    rows = [(1, {"a": np.float32("nan"), "b": float("inf"), "c": jnp.float32(-jnp.inf), "d": jnp.bfloat16(1.5)})]
    path = log_of(tmp_path, rows)
    assert json.loads(path.read_text()) == {"step": 1, "a": "nan", "b": "inf", "c": "-inf", "d": 1.5}
    row = read_metrics(path)[0]
    assert np.isnan(row["a"])
    assert (row["b"], row["c"], row["d"]) == (float("inf"), -float("inf"), 1.5)


@pytest.mark.parametrize("value", [np.zeros(2), "high", None, 1j])
def test_what_is_no_number_is_refused(tmp_path, value):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="'lm/x' is not a number"):
        log.write(1, {"lm/x": value})


def test_a_metric_called_step_is_refused(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="step"):
        log.write(1, {"step": 3})


def test_resume_drops_later_rows_and_a_half_written_one(tmp_path):
    path = log_of(tmp_path, [(step, {"lm/nats_per_token": step / 3}) for step in range(1, 6)])
    with path.open("a") as file:
        file.write('{"step": 6, "lm/nats_per_')  # what kill -9 leaves
    log = MetricsLog(tmp_path)
    log.close()
    assert len(path.read_text().splitlines()) == 5
    path.write_text(path.read_text() + '{"step": 6, "lm/na')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    with MetricsLog(tmp_path) as log:
        log.resume(3)
        log.write(4, {"lm/nats_per_token": 9.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    assert read_metrics(path)[-1]["lm/nats_per_token"] == 9.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_resume_drops_a_half_row_written_after_opening(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": 1.0})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 2, "\xc3')
        log.resume(1)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 1.0}\n'
        log.resume(0)
        assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_complete_last_row_without_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 0.1}')
    log_of(tmp_path, [(2, {"a": 0.2})])
    assert path.read_text() == '{"step": 1, "a": 0.1}\n{"step": 2, "a": 0.2}\n'


def test_a_bad_row_in_the_middle_names_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*rubbish"):
        read_metrics(path)


def test_a_killed_process_leaves_every_written_row(tmp_path):
    code = (
        "import os, signal, sys, pathlib; from gptjax.run.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]))\n"
        "for i in range(20): log.write(i, {'a': i / 7})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert [row["a"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [i / 7 for i in range(20)]


def test_tensorboard_holds_the_values_and_marks_what_resume_dropped(tmp_path):
    from tensorboardX.proto import event_pb2

    log_of(tmp_path, [(1, {"lm/x": 0.5}), (2, {"lm/x": 0.25})])
    with MetricsLog(tmp_path) as log:
        log.resume(1)
        log.write(2, {"lm/x": 0.75})
    events = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")  # u64 length, u32 crc, record, u32 crc
            events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    scalars = [(event.step, event.summary.value[0].simple_value) for event in events if event.summary.value]
    assert scalars == [(1, 0.5), (2, 0.25), (2, 0.75)]
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [2]  # TensorBoard hides earlier events from step 2 on


def test_importing_the_module_leaves_tensorboardx_alone():
    code = "import sys, gptjax.run.metrics; print('tensorboardX' in sys.modules, 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"


class FullDisk:
    """A file whose disk is full for some writes; the first of them still takes half a row."""

    def __init__(self, file, times):
        self._file, self._left, self._torn = file, times, False

    def write(self, raw):
        if not self._left:
            return self._file.write(raw)
        self._left -= 1
        if not self._torn:
            self._torn = True
            return self._file.write(raw[: len(raw) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_rows_wait_until_a_full_disk_has_space_again(tmp_path, capsys):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": 1.0})
        log._file = FullDisk(log._file, 3)
        for step in (2, 3, 4):
            log.write(step, {"a": float(step)})
            assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
        log.write(5, {"a": 5.0})
        assert [row["a"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "is full: 1 rows wait until it has space" in capsys.readouterr().err


def test_rows_that_never_found_space_are_an_error(tmp_path):
    log = MetricsLog(tmp_path)
    log._file = FullDisk(log._file, 9)
    log.write(1, {"a": 1.0})
    with pytest.raises(OSError, match="No space left"):
        log.close()
    log._file.close()
