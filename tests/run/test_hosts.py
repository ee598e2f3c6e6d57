"""Real processes on 127.0.0.1: what they exchange, and that they train as one process does."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptjax.data.loader import EVERYTHING
from gptjax.run.hosts import HostsConfig, check_same, check_shared, first_says, join, on_first
from gptjax.run.mesh import MeshConfig, host_share, make_mesh
from gptjax.run.metrics import read_metrics

pytestmark = pytest.mark.xdist_group("hosts")  # side by side they would choose the same free port
HERE = Path(__file__).parent
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 2}, "hosts.count is given without --hosts.coordinator and --hosts.index"),
        ({"coordinator": "a:1", "index": 0}, "hosts.coordinator is given without --hosts.count"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, r"hosts.index must lie in 0\.\.1"),
        ({"coordinator": "a", "count": 2, "index": 0}, "hosts.coordinator must be HOST:PORT, got 'a'"),
        ({"coordinator": "a:70000", "count": 2, "index": 0}, "must be HOST:PORT"),
        ({"count": 0}, "hosts.count must be at least 1, got 0"),
    ],
)
def test_where_processes_meet_is_given_whole_or_not_at_all(given, message):
    with pytest.raises(ValueError, match=message):
        HostsConfig(**given)


def test_a_process_that_is_alone_meets_nobody_and_says_everything_itself(tmp_path):
    join(HostsConfig(count=1))
    done = []
    on_first(lambda: done.append(1))
    assert done == [1]
    assert first_says(True)
    assert not first_says(False)
    check_same("the data", "x")
    check_shared(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(ValueError, match="mine"):
        on_first(lambda: (_ for _ in ()).throw(ValueError("mine")))
    assert host_share(make_mesh(MeshConfig(fsdp=4, context=2))) == EVERYTHING


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(folder: Path) -> dict[str, str]:
    own = {"TINY_DATA": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    # nearly all of the time goes into compiling, which is much the same for such small programs without optimising them
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
    return os.environ | own | flags | {"PYTHONPATH": str(HERE.parents[1])}


def output(processes: list[subprocess.Popen], seconds: float = 900) -> list[str]:
    """What each of them printed; none may fail."""
    try:
        printed = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text[-3000:]
    return printed


def started(command: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_rows_reach_any_mesh_of_two_processes_and_the_first_speaks_for_both(tmp_path):
    at = f"127.0.0.1:{port()}"
    script = str(HERE / "hosts_exchange.py")
    for text in output([started([script, at, str(index), str(tmp_path)], tmp_path) for index in range(2)], 120):
        assert "all well" in text


def write_data(folder: Path) -> None:
    """A little corpus, conversations, rankings and prompts about numbers."""
    rng = random.Random(0)
    folder.mkdir(parents=True)

    def lines(name: str, rows: list) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ask(a: int, b: int) -> list:
        return [{"role": "user", "content": f"{WORDS[a]} and {WORDS[b]}?"}]

    pairs = [(rng.randrange(10), rng.randrange(10)) for _ in range(120)]
    answers = [[{"content": WORDS[(a + b + k) % 10]} for k in range(3)] for a, b in pairs]
    chats = [{"messages": [*ask(a, b), {"role": "assistant", "content": WORDS[(a + b) % 10]}]} for a, b in pairs]
    ranked = [
        {"messages": ask(*pair), "responses": given, "ranks": [1, 2, 2]}
        for pair, given in zip(pairs, answers, strict=True)
    ]
    lines("corpus.jsonl", [{"text": " ".join(rng.choice(WORDS) for _ in range(40))} for _ in range(120)])
    lines("chats.jsonl", chats)
    lines("ranked.jsonl", ranked)
    lines("prompts.jsonl", [{"messages": ask(*pair)} for pair in pairs])


class Hosts:
    """Runs tests/run/hosts_recipe.py in one or more processes of the real command."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_data(folder / "data")

    def start(self, workdir: str, what: str, processes: int, devices: int, *options: str) -> list[subprocess.Popen]:
        run = ["-m", "gptjax", "run", f"{HERE / 'hosts_recipe.py'}:{what}", "--workdir", workdir]
        run += ["--devices", str(devices), *options]
        if processes == 1:
            return [started([*run, "--hosts.count", "1"], self.folder)]
        run += ["--hosts.coordinator", f"127.0.0.1:{port()}", "--hosts.count", str(processes)]
        return [started([*run, "--hosts.index", str(index)], self.folder) for index in range(processes)]

    def finish(self, workdir: str, what: str, processes: int, devices: int, *options: str) -> Path:
        output(self.start(workdir, what, processes, devices, *options))
        return self.folder / workdir


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Hosts:
    return Hosts(tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def alone(hosts) -> Path:
    """The language model, trained by one process."""
    return hosts.finish("alone", "lm", 1, 2)


def assert_agree(ours: Path, theirs: Path, stages: tuple[str, ...], tolerance: float = 1e-6) -> None:
    for stage in stages:
        rows, expected = (read_metrics(run / stage / "metrics.jsonl") for run in (ours, theirs))
        assert [row["step"] for row in rows] == [row["step"] for row in expected], stage
        for row, other in zip(rows, expected, strict=True):
            for name in row:
                if not name.startswith("perf/"):
                    assert row[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), (stage, name, row)
        found, wanted = (json.loads((run / stage / "result.json").read_text()) for run in (ours, theirs))
        assert found["tokens"] == wanted["tokens"]
        for name, value in found["evaluation"].items():
            if isinstance(value, int | float):
                assert value == pytest.approx(wanted["evaluation"][name], rel=1e-4, abs=1e-4), (stage, name)


def test_two_processes_killed_and_resumed_train_as_one_does(hosts, alone):
    killed = hosts.start("two", "lm", 2, 1)
    checkpoint = hosts.folder / "two" / "lm" / "checkpoints" / "4"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in killed), killed[0].communicate()[0][-3000:]
        time.sleep(0.02)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (hosts.folder / "two" / "lm" / "result.json").exists()
    assert_agree(hosts.finish("two", "lm", 2, 1), alone, ("lm",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "mesh"),
    [
        (2, {"fsdp": 2}),
        (2, {"tensor": 2}),
        (2, {"context": 2}),
        (4, {"data": 2, "fsdp": 2}),
        (4, {"fsdp": 2, "tensor": 2}),
        (4, {"expert": 2, "context": 2}),
    ],
)
def test_every_axis_can_run_across_processes(hosts, alone, processes, mesh):
    options = [word for axis, size in mesh.items() for word in (f"--mesh.{axis}", str(size))]
    name = "-".join(f"{axis}{size}" for axis, size in mesh.items())
    assert_agree(hosts.finish(name, "lm", processes, 1, *options), alone, ("lm",))


@pytest.mark.slow
def test_two_processes_load_what_one_has_saved_and_the_other_way_round(hosts, alone):
    for name, first, then in (("widened", (1, 2), (2, 1)), ("narrowed", (2, 1), (1, 2))):
        killed = hosts.start(name, "lm", *first)
        while not (hosts.folder / name / "lm" / "checkpoints" / "4").exists():
            assert all(process.poll() is None for process in killed), killed[0].communicate()[0][-3000:]
            time.sleep(0.02)
        for process in killed:
            process.kill()
            process.communicate()
        assert_agree(hosts.finish(name, "lm", *then), alone, ("lm",))


@pytest.mark.slow
def test_every_objective_trains_in_two_processes_as_in_one(hosts):
    stages = ("mlm", "lm", "sft", "reward", "dpo", "ppo", "grpo")
    ours = hosts.finish("all-two", "recipe", 2, 1, "--mesh.fsdp", "2")
    assert_agree(ours, hosts.finish("all-one", "recipe", 1, 2, "--mesh.fsdp", "2"), stages, 1e-5)


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_exit_code_2(hosts):
    processes = hosts.start("wrong", "lm", 2, 1, "--mesh.tensor", "3")
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    assert all("mesh" in text for text in printed)
