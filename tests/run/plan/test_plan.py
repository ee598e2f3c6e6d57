"""Plans of small experiments on simulated devices."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from gptjax import cli
from gptjax.run.chips import CHIPS, Chip, chip
from gptjax.run.load import load_recipe
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.run.plan import compile as module
from gptjax.run.plan import search
from gptjax.run.plan.compile import axes_of, plan_experiment, topology_devices

TINY = str(Path(__file__).parent / "plan_tiny.py")


@pytest.fixture(autouse=True)
def started(monkeypatch):
    monkeypatch.setattr("gptjax.run.start.start_jax", lambda devices=None: None)


def tiny(name="experiment", *overrides):
    return load_recipe(f"{TINY}:{name}", overrides).stages["run"]


@pytest.fixture(scope="module")
def programs():
    return plan_experiment(tiny(), topology_devices("cpu:8"))


def test_fsdp_gathers_every_matrix_twice_and_scatters_its_gradient_once(programs):
    # float32 bytes: a block's matrices are 4 D D + 3 D F, of 3 layers; the unembedding is V D; to the embedding, longer
    # than a device's 32 tokens, those of all 8 rows travel, and their columns to 32 tokens and back
    blocks, table = 3 * (4 * 16 * 16 + 3 * 16 * 32) * 4, 64 * 16 * 4
    tokens, columns = 8 * 32 * 4, 32 * 16 * 4
    scales = 7 * 16 * 4  # of norms: gathered on each pass, their gradients summed everywhere
    moved = {row.kind: row for row in programs[0].traffic}
    assert {row.axes for row in programs[0].traffic} == {"fsdp"}
    gathered = moved["all-gather"].payload_bytes
    assert 2 * blocks + table + tokens <= gathered <= 2 * blocks + table + tokens + 2 * scales
    assert moved["reduce-scatter"].payload_bytes == blocks + table
    assert moved["all-to-all"].payload_bytes == 2 * columns
    assert moved["all-reduce"].payload_bytes <= scales + 200  # and the metrics


def test_arguments_are_split_into_what_they_are(programs):
    memory = programs[0].memory
    parameters = 3 * (4 * 16 * 16 + 3 * 16 * 32) + 2 * 64 * 16 + 7 * 16
    assert memory.parameters == parameters * 4 // 8
    assert memory.optimizer == 2 * memory.parameters + 4 + 4  # two moments, and two counters of steps
    assert memory.peak >= memory.parameters + memory.optimizer + memory.temporaries


def test_unknown_devices_have_no_predicted_time(programs):
    assert programs[0].roofline is None
    assert programs[0].memory.missing == 0


@pytest.mark.slow
def test_a_rollout_and_its_update_are_both_planned():
    collect, step = plan_experiment(tiny("ppo"), topology_devices("cpu:8"))
    assert (collect.name, step.name) == ("collect", "step")
    assert (collect.tokens, step.tokens) == (16 * 16, 8 * 16)
    assert collect.memory.parameters == step.memory.parameters
    # beside the state: a policy and a reward model that nobody changes, gain and bias, prompts and a key
    models = collect.memory.parameters
    assert models <= collect.memory.other_arguments <= models + 4000


SMALL = Chip(hbm_bytes=1e5, flops=1e12, hbm_bandwidth=1e11, ici_bandwidth=1e10, ici_dims=1, dcn_bandwidth=1e9)


def test_what_does_not_fit_exits_with_code_3_and_says_how_much_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(module, "chip", lambda kind: SMALL)
    argv = ["plan", TINY + ":experiment", "--topology", "cpu:8", "--json", "--batch_size", "16", "--no-remedy"]
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 3
    found = json.loads(capsys.readouterr().out)["cpu:8"]
    step = found["programs"]["step"]
    assert step["memory"]["missing"] == step["memory"]["peak"] - 100_000 > 0
    alone = {name: step["roofline"][name] for name in ("compute", "hbm", "ici", "dcn")}
    assert step["roofline"]["fastest"] == max(alone.values()) == alone[step["roofline"]["binds"]]
    assert step["tokens_per_second_best"] == pytest.approx(step["tokens"] / max(alone.values()))


@pytest.mark.slow
def test_what_would_make_it_fit_does(monkeypatch, capsys):
    argv = ["plan", TINY + ":experiment", "--topology", "cpu:8", "--json", "--batch_size", "16"]
    whole = plan_experiment(tiny("experiment", "--batch_size", "16"), topology_devices("cpu:8"))[0].memory.peak
    monkeypatch.setattr(module, "chip", lambda kind: dataclasses.replace(SMALL, hbm_bytes=0.8 * whole))
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 3
    remedy = json.loads(capsys.readouterr().out)["cpu:8"]["remedy"]
    cli.main([*argv, *remedy.split()])
    assert json.loads(capsys.readouterr().out)["cpu:8"]["programs"]["step"]["memory"]["missing"] == 0


@pytest.mark.slow
def test_a_search_ranks_layouts_and_doubles_the_batch_while_it_fits(monkeypatch, capsys):
    monkeypatch.setattr(module, "chip", lambda kind: dataclasses.replace(SMALL, hbm_bytes=5e5))
    cli.main(["plan", TINY + ":experiment", "--topology", "cpu:2", "--json", "--search"])
    found = {row["options"]: row for row in json.loads(capsys.readouterr().out)["cpu:2"]}
    fits = [row["missing"] == 0 for row in found.values()]
    assert fits == sorted(fits, reverse=True)  # those that fit come first
    rates = [row["tokens_per_second"] for row in found.values() if row["missing"] == 0]
    assert rates == sorted(rates, reverse=True)
    for layout in ("--mesh.fsdp 2 --mesh.tensor 1 --model.remat ", "--mesh.fsdp 1 --mesh.tensor 2 --model.remat "):
        assert {"full", "attention"} <= {name.removeprefix(layout).split()[0] for name in found if layout in name}
    larger = [name for name in found if "--batch-size" in name]
    assert larger
    for name in larger:
        layout, _, rows = name.partition(" --batch-size ")
        smaller = layout if rows == "16" else f"{layout} --batch-size {int(rows) // 2}"
        assert found[smaller]["missing"] == 0
        assert found[smaller]["peak"] < found[name]["peak"]
    assert not fits[-1]  # 500 kB are not enough for the largest


@pytest.mark.parametrize(("options", "data"), [((), 2), (("--mesh.data", "4"), 4)])
def test_of_several_slices_no_layout_but_data_crosses_them(options, data):
    devices = [SimpleNamespace(slice_index=i // 8) for i in range(16)]
    meshes = [changed.mesh for _, changed in search.layouts(tiny("experiment", *options), devices)]
    assert [(mesh.data, mesh.fsdp, mesh.tensor) for mesh in meshes[::2]] == [
        (data, 16 // data // tensor, tensor) for tensor in (1, 2, 4, 8) if data * tensor <= 16
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--topology", "cpu:9"], "write cpu:N with N up to 8 here"),
        (["--topology", "cpu:8", "--mesh.fsdp", "3"], "fsdp 3"),
        (["--topology", "cpu:8", "--slices", "0"], "--slices must be at least 1"),
        (["--topology", "cpu:8", "--stage", "lm"], "--stage must be one of run"),
    ],
)
def test_a_wrong_option_is_explained(options, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", TINY + ":experiment", *options])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_members_of_a_group_name_their_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    assert axes_of((0, 1), mesh) == ("tensor",)
    assert axes_of((0, 4), mesh) == ("data",)
    assert axes_of((0, 2, 4, 6), mesh) == ("data", "fsdp")


def test_the_table_of_chips_is_the_makers():
    v5e, v5p = CHIPS["TPU v5 lite"], CHIPS["TPU v5"]
    assert (v5e.flops, v5p.flops) == (197e12, 459e12)
    assert v5p.hbm_bytes / v5e.hbm_bytes == 95 / 16
    assert all(c.dcn_bandwidth < c.ici_bandwidth < c.hbm_bandwidth < c.flops for c in CHIPS.values())
    assert chip("TPU v99") is None


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_accelerators(platform):
    mesh = make_mesh(tiny().mesh, jax.devices())
    [(_, program)] = module._programs(tiny(), mesh)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        exported = jax.export.export(jax.jit(program.function), platforms=(platform,))(*program.arguments)
    assert exported.platforms == (platform,)
    assert exported.nr_devices == 8


@pytest.mark.slow
def test_a_tpu_slice_is_planned_with_its_kernel():
    pytest.importorskip("libtpu")
    options = ["--mesh.fsdp", "4", "--mesh.tensor", "2", "--model.spread-norms", "--model.dtype", "bfloat16"]
    options += [
        "--task.row-tokens",
        "256",
        "--model.max-length",
        "256",
        "--model.width",
        "1024",
    ]  # tiles for each device
    [step] = plan_experiment(tiny("experiment", *options), topology_devices("v5e:2x4"))
    assert step.memory.capacity == 16 * 2**30
    assert step.roofline is not None
    kinds = {(row.kind, row.axes) for row in step.traffic}
    assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("reduce-scatter", "tensor")} <= kinds


@pytest.mark.slow
def test_between_slices_travels_each_gradient_once():
    pytest.importorskip("libtpu")
    options = ["--mesh.data", "2", "--mesh.fsdp", "8", "--batch-size", "16", "--task.loss-chunks", "1"]
    [step] = plan_experiment(tiny("experiment", *options), topology_devices("v5e:2x4", 2))
    between = [row for row in step.traffic if row.network == "dcn"]
    assert {(row.kind, row.axes) for row in between} == {("all-reduce", "data")}
    # an all-reduce of two sends what it is given: the gradient that a device holds, a few sums, and padding to lanes
    sent = sum(row.sent_bytes for row in between)
    assert step.memory.parameters <= sent <= 4 * step.memory.parameters
    assert step.roofline is not None
    assert step.roofline.dcn > 0


@pytest.mark.parametrize(("remat", "in_full"), [("none", 3), ("full", 2), ("offload", 0)])
def test_every_remedy_is_told_as_options_that_make_it(remat, in_full):
    experiment = tiny("experiment", "--model.remat", remat, "--mesh.fsdp", "4", "--mesh.tensor", "2")
    found = list(search._remedies(experiment))
    assert len(found) >= 4
    for options, changed in found:
        words = options.split()
        assert len(set(words)) == len(words)  # no option twice
        given = ["--model.remat", remat, "--mesh.fsdp", "4", "--mesh.tensor", "2"]
        kept = [] if "--model.remat" in words else given[:2]
        assert tiny("experiment", *kept, *given[2:], *words) == changed
    assert [changed.model.remat for _, changed in found].count("full") == in_full
