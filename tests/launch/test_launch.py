"""Launch scripts: their syntax, and what they do on each exit code, with stand-ins for the programs that they call."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
DOCS = LAUNCH.parent / "docs" / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
FINAL = (0, 2, 3, 70)  # codes after which a restart helps nothing


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)
    return path


def run(command, *, path: Path, seconds: float = 60, **variables):
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "HERE": str(path)} | variables
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=seconds)


def codes(folder: Path, *sequence: int) -> Path:
    """A command that ends with these exit codes, one after the other; `calls` counts them."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in sequence))
    return script(
        folder / "flaky",
        'echo "$@" >>"$HERE/calls"\nexit "$(sed -n "$(grep -c "" "$HERE/calls")p" "$HERE/codes")"\n',
    )


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_every_script_is_valid_bash(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("name", ["gcloud", "gke", "skypilot", "slurm"])
def test_every_guide_says_that_it_was_never_tried_and_what_the_exit_codes_mean(name):
    text = " ".join((DOCS / f"{name}.md").read_text().split())
    assert "has never been run" in text
    assert "restart.md" in text


@pytest.mark.parametrize("code", FINAL)
def test_a_code_that_a_restart_cannot_mend_ends_the_loop(tmp_path, code):
    done = run([LAUNCH / "restart.sh", codes(tmp_path, code), "a b", "c"], path=tmp_path)
    assert done.returncode == code
    assert calls(tmp_path) == ["a b c"]


@pytest.mark.parametrize("code", FINAL)
def test_what_a_restart_would_repeat_is_not_restarted_after_a_crash(tmp_path, code):
    command = [LAUNCH / "restart.sh", codes(tmp_path, 1, code, 0)]
    assert run(command, path=tmp_path, RESTART_WAIT="0").returncode == code
    assert len(calls(tmp_path)) == 2


def test_ten_crashes_and_preemptions_are_ten_restarts(tmp_path):
    command = [LAUNCH / "restart.sh", codes(tmp_path, 1, 139, 75, 134, 1, 75, 137, 1, 143, 75, 0)]
    assert run(command, path=tmp_path, RESTART_WAIT="0").returncode == 0
    assert len(calls(tmp_path)) == 11


def test_ten_crashes_are_ten_restarts(tmp_path):
    sequence = [1, 134, 137, 1, 139, 1, 1, 1, 1, 1, 0]
    command = [LAUNCH / "restart.sh", codes(tmp_path, *sequence)]
    done = run(command, path=tmp_path, RESTART_WAIT="0", RESTART_LIMIT="11")
    assert done.returncode == 0
    assert len(calls(tmp_path)) == 11


def test_preemptions_are_run_again_without_limit_and_crashes_in_a_row_are_not(tmp_path):
    # 75 sets the count of crashes back: 1 1 75 1 1 75 0 never has three in a row
    command = [LAUNCH / "restart.sh", codes(tmp_path, 1, 1, 75, 1, 1, 75, 0)]
    assert run(command, path=tmp_path, RESTART_WAIT="0", RESTART_LIMIT="3").returncode == 0
    (tmp_path / "calls").unlink()
    command = [LAUNCH / "restart.sh", codes(tmp_path, 1, 1, 134, 0)]
    done = run(command, path=tmp_path, RESTART_WAIT="0", RESTART_LIMIT="3")
    assert done.returncode == 134
    assert "3 crashes in a row: giving up" in done.stderr


def test_a_crash_after_a_long_run_begins_a_new_count(tmp_path):
    command = [LAUNCH / "restart.sh", codes(tmp_path, 1, 1, 1, 0)]
    assert run(command, path=tmp_path, RESTART_WAIT="0", RESTART_LIMIT="2", RESTART_RESET="0").returncode == 0


def test_the_last_code_is_written_where_it_is_asked_for(tmp_path):
    command = [LAUNCH / "restart.sh", codes(tmp_path, 75, 70)]
    run(command, path=tmp_path, RESTART_RESULT=str(tmp_path / "result"))
    assert (tmp_path / "result").read_text() == "70\n"


def test_sigterm_reaches_the_command_and_its_code_is_passed_on(tmp_path):
    command = script(
        tmp_path / "saves", "trap 'exit 75' TERM\necho x >>\"$HERE/running\"\nwhile true; do sleep 0.05; done\n"
    )
    process = subprocess.Popen([LAUNCH / "restart.sh", command], env=os.environ | {"HERE": str(tmp_path)})
    deadline = time.monotonic() + 30
    while not (tmp_path / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert (tmp_path / "running").read_text() == "x\n"


def test_ctrl_c_ends_the_command_and_the_loop(tmp_path):
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), sys.exit(75)))\n"  # a run saves first
        "with open(os.environ['HERE'] + '/running', 'a') as file: file.write('x')\n"
        "time.sleep(60)\n"
    )
    heeding = (  # a shell cannot trap what was ignored when it began, as where the tests run in the background
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.execv(sys.argv[1], sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", heeding, LAUNCH / "restart.sh", sys.executable, "-c", program]
    process = subprocess.Popen(command, env=os.environ | {"HERE": str(tmp_path)}, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 75
    assert (tmp_path / "running").read_text() == "x"


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (3, False), (70, False), (75, True), (137, True)])
def test_slurm_queues_the_job_again_unless_that_helps_nothing(tmp_path, code, again):
    script(tmp_path / "srun", f'echo "srun $*" >>"$HERE/calls"\nexit {code}\n')
    script(tmp_path / "scontrol", 'echo "scontrol $*" >>"$HERE/calls"\n')
    done = run([LAUNCH / "slurm.sbatch", "e.py", "--workdir", "w"], path=tmp_path, SLURM_JOB_ID="7")
    assert calls(tmp_path)[0] == "srun --kill-on-bad-exit=1 gptjax run e.py --workdir w"
    assert calls(tmp_path)[1:] == (["scontrol requeue 7"] if again else [])
    assert done.returncode == (0 if again else code)


def test_slurm_gives_up_in_the_end(tmp_path):
    script(tmp_path / "srun", "exit 134\n")
    script(tmp_path / "scontrol", 'echo "scontrol $*" >>"$HERE/calls"\n')
    done = run([LAUNCH / "slurm.sbatch", "e.py"], path=tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="50")
    assert done.returncode == 134
    assert calls(tmp_path) == []


def test_xpk_restarts_on_crashes_and_preemptions_only(tmp_path):
    settings = {"PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "NAME": "n", "TPU": "v5litepod-16", "IMAGE": "i"}
    done = run([LAUNCH / "xpk.sh", "e.py", "--name", "a b"], path=tmp_path, DRY_RUN="1", **settings)
    assert "--restart-on-exit-codes 1\\,75" in done.stdout or "--restart-on-exit-codes 1,75" in done.stdout
    assert "--workdir" in done.stdout
    assert done.returncode == 0
    missing = run([LAUNCH / "xpk.sh", "e.py"], path=tmp_path, **(settings | {"IMAGE": ""}))
    assert missing.returncode == 2
    assert "IMAGE is not set" in missing.stderr


def test_skypilot_restarts_on_crashes_and_preemptions_only():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    recovery = task["resources"]["job_recovery"]
    assert {1, 75, 134, 137} <= set(recovery["recover_on_exit_codes"])
    assert not set(FINAL) & set(recovery["recover_on_exit_codes"])
    assert recovery["max_restarts_on_errors"] == 0
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True, capture_output=True).stderr == ""
    assert "--hosts.coordinator" in task["run"]


GCLOUD = r"""
fail() { echo "ERROR: (gcloud) $1" >&2; exit 1; }
echo "$*" >>"$HERE/calls"
case "$*" in
*"queued-resources describe"*) list=states ;;
*"tpu-vm describe"*) list=workers ;;
*"cat /shared"*) list=verdicts ;;
*) exit 0 ;;
esac
line=$(head -n1 "$HERE/$list")
[ "$(wc -l <"$HERE/$list")" -gt 1 ] && sed -i 1d "$HERE/$list"
case "$line" in
ABSENT) fail "NOT_FOUND: Resource 'n' was not found" ;;
OFFLINE) fail "Unable to find the server" ;;
*) printf '%b' "$line" ;;
esac
"""


def gcloud(folder: Path, states: list[str], verdicts: list[str], workers: tuple[str, ...] = ("10.0.0.1;10.0.0.2",)):
    script(folder / "gcloud", GCLOUD)
    (folder / "temporary").mkdir()
    for name, lines in (("states", states), ("verdicts", verdicts), ("workers", workers)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    settings = {"PROJECT": "p", "ZONE": "z", "NAME": "n", "ACCELERATOR": "v5litepod-8", "RUNTIME": "r", "NFS": "h:/s"}
    (folder / "repository").mkdir()
    command = ["bash", "-c", f"cd {folder}/repository && {LAUNCH}/gcloud.sh e.py --mesh.fsdp 8"]
    done = run(command, path=folder, POLL_SECONDS="0", TMPDIR=str(folder / "temporary"), **settings)
    assert list((folder / "temporary").iterdir()) == []
    return done


def verbs(folder: Path) -> list[str]:
    known = ("create", "delete", "restart.sh")
    return [next(verb for verb in known if verb in call) for call in calls(folder) if any(v in call for v in known)]


def test_a_preempted_slice_is_asked_for_again_and_a_finished_one_is_deleted(tmp_path):
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "ABSENT", "PROVISIONING", "ACTIVE"]
    done = gcloud(tmp_path, states, ["", "0\\n", "0\\n0\\n"])  # nobody, one of two workers, both
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == ["create", "restart.sh", "delete", "create", "restart.sh", "delete"]
    assert "--spot" in next(call for call in calls(tmp_path) if "create" in call)


def test_the_codes_that_were_read_once_are_those_it_ends_with(tmp_path):
    # a second question would get no answer
    done = gcloud(tmp_path, ["ABSENT", "ACTIVE"], ["0\\n0\\n", ""])
    assert done.returncode == 0
    assert verbs(tmp_path) == ["create", "restart.sh", "delete"]


def test_a_question_that_nobody_answers_is_asked_again(tmp_path):
    # a slice that is taken for absent would be asked for twice, one whose workers are not known ended too early
    states, verdicts = ["ABSENT", "ACTIVE", "OFFLINE", "ACTIVE"], ["0\\n", "0\\n0\\n"]
    done = gcloud(tmp_path, states, verdicts, ("OFFLINE", "10.0.0.1;10.0.0.2"))
    assert done.returncode == 0
    assert verbs(tmp_path) == ["create", "restart.sh", "delete"]
    assert sum("cat /shared" in call for call in calls(tmp_path)) == 2
    assert "Unable to find the server\nthe slice is UNKNOWN" in done.stderr


@pytest.mark.parametrize("code", [2, 70])
def test_a_mistake_ends_it_even_if_other_workers_died_of_it(tmp_path, code):
    done = gcloud(tmp_path, ["ABSENT", "ACTIVE"], [f"{code}\\n134\\n"])
    assert done.returncode == code
    assert verbs(tmp_path) == ["create", "restart.sh", "delete"]


def test_a_crash_on_all_workers_is_started_again_on_the_same_slice(tmp_path):
    done = gcloud(tmp_path, ["ABSENT", "ACTIVE"], ["134\\n1\\n", "0\\n0\\n"])
    assert done.returncode == 0
    assert verbs(tmp_path) == ["create", "restart.sh", "restart.sh", "delete"]
