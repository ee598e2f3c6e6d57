"""The report of a recipe: complete, escaped, and there even when stages are not."""

import json
import math
from html.parser import HTMLParser

import pytest

from gptjax.run.report.recipe import write_report

EVALUATION = {
    "lm": {
        "bits_per_byte": 2.01,
        "xz_bits_per_byte": 2.31,
        "heldout_bytes": 65536,
        "samples": ["once <b>upon</b> a time"],
    },
    "sft": {
        "end_rate": 0.97,
        "nats_per_token": 1.42,
        "answers": [{"prompt": "2 + 2?", "reference": "4", "answer": "<script>alert(1)</script>"}],
    },
    "reward": {
        "accuracy": 0.712,
        "sampled_pair_accuracy": 0.68,
        "sampled_pair_bayes_accuracy": 0.75,
        "length_only_accuracy": 0.55,
        "nll": 0.55,
        "brier": 0.19,
        "ece": 0.021,
        "reliability": [
            {"confidence": 0.55 + 0.1 * i, "accuracy": 0.53 + 0.1 * i + 0.02 * (i % 2), "count": 400 - 80 * i}
            for i in range(5)
        ],
        "length_correlation": 0.12,
    },
    "ppo": {
        "gold_sft": 0.21,
        "gold_ppo": 0.93,
        "gold_gain": 0.72,
        "gold_gain_ci": [0.61, 0.83],
        "proxy_sft": 0.1,
        "proxy_ppo": 1.4,
        "kl_nats": 6.1,
        "kl_target_nats": 6.0,
        "best_of_n": [
            {"n": n, "kl_nats": math.log(n) - (n - 1) / n, "gold": 0.21 + 0.28 * math.sqrt(math.log(n)), "proxy": 0.4}
            for n in (1, 2, 4, 8, 16, 32, 64)
        ],
        "end_rate_sft": 0.97,
        "end_rate_ppo": 0.99,
        "answers": [
            {
                "prompt": "Name & colour?",
                "reference": "red",
                "sft": "a\nb",
                "ppo": "blue",
                "gold_sft": 0.1,
                "gold_ppo": 0.9,
            }
        ],
    },
}


def wave(i):
    return 0.15 * math.sin(12.9898 * i * i)


def lm_row(i):
    row = {"lm/nats_per_token": 1.4 + 4 * math.exp(-i / 60) + wave(i), "optim/grad_norm": 1 + wave(i), "optim/lr": 1e-3}
    return row | ({"eval/bits_per_byte": 2.0 + 2 * math.exp(-i / 60)} if i % 50 == 0 else {})


def sft_row(i):
    row = {"sft/nats_per_token": 1.3 + math.exp(-i / 40) + wave(i), "optim/grad_norm": 0.8 + wave(i), "optim/lr": 1e-4}
    return row | ({"eval/nats_per_token": 1.42 + math.exp(-i / 40), "eval/end_rate": 1 - 0.9**i} if i % 40 == 0 else {})


def reward_row(i):
    row = {"reward/loss_nats": 0.55 + 0.14 * math.exp(-i / 50) + wave(i) / 4, "reward/accuracy": 0.7 + wave(i) / 2}
    return row | ({"eval/accuracy": 0.712 - 0.2 * math.exp(-i / 30)} if i % 40 == 0 else {})


def ppo_row(i):
    rise = 1 - math.exp(-i / 80)
    held_out = {"ppo/gold_score": 0.2 + 0.73 * rise, "eval/kl_nats": 6.1 * rise}
    return (held_out if i % 40 == 0 else {}) | {
        "ppo/score": 0.1 + 1.3 * rise + wave(i),
        "ppo/kl_nats_per_sequence": 6.1 * rise + wave(i),
        "ppo/value_loss": 0.3 * math.exp(-i / 50),
        "ppo/policy_loss": -0.01 + wave(i) / 20,
        "ppo/clip_fraction": 0.1 + wave(i) / 10,
        "ppo/entropy_nats_per_token": 1.2 - 0.4 * rise,
        "ppo/response_tokens": 24 + 5 * wave(i),
        "ppo/end_rate": 0.97,
    }


ROWS = {"lm": lm_row, "sft": sft_row, "reward": reward_row, "ppo": ppo_row}


def make_stage(workdir, name, *, n_rows=300):
    folder = workdir / name
    folder.mkdir(parents=True)
    (folder / "config.txt").write_text("mesh.fsdp = 4\ndata.path = 'a<b'\n")
    rows = [{"step": i, **ROWS[name](i)} for i in range(n_rows)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"task": name, "steps": n_rows, "seconds": 185.2, "tokens": 1_234_567, "parameters": 4_200_000}
    (folder / "result.json").write_text(json.dumps(result | {"evaluation": EVALUATION[name]}))


def make_recipe(workdir, stages=("lm", "sft", "reward", "ppo")):
    workdir.mkdir(exist_ok=True)
    recipe = {
        "name": "tiny <recipe>",
        "stages": stages,
        "devices": "8 CPU devices",
        "python": "3.11.7",
        "jax": "0.10.2",
    }
    (workdir / "recipe.json").write_text(json.dumps(recipe))
    return workdir


class Page(HTMLParser):
    """Checks that tags close in order; gathers headings, text, pictures and addresses."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.images, self.links, self.paragraphs = [], [], "", [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.paragraphs += [""] if tag == "p" else []
        attributes = dict(attrs)
        self.links += [attributes[key] for key in ("src", "href") if key in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "p" in self.open:
            self.paragraphs[-1] += data


def report_of(workdir):
    path = write_report(workdir)
    assert path == workdir / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    workdir = make_recipe(tmp_path_factory.mktemp("full"))
    for name in ROWS:
        make_stage(workdir, name)
    return report_of(workdir)


def test_every_stage_has_its_pictures(full):
    # lm: loss, bits per byte, optimisation; sft: loss, optimisation; reward: loss, accuracy, bars, reliability;
    # ppo: rewards and KL, frontier, the rest
    assert len(full.images) == 3 + 2 + 4 + 3
    assert full.tags.count("figcaption") == 12
    assert all(image["alt"].endswith(".") and any(c.isdigit() for c in image["alt"]) for image in full.images)


def test_nothing_outside_the_file_is_needed(full):
    assert all(link.startswith("data:image/svg+xml;base64,") for link in full.links)
    assert "script" not in full.tags
    assert "link" not in full.tags


def test_the_summary_states_the_results_in_numbers(full):
    summary = full.paragraphs[0]
    for words in (
        "4 of 4 stages are finished, in 12 min 21 s of training on 8 CPU devices (Python 3.11.7, JAX 0.10.2)",
        "The language model needs 2.01 bits per byte of held-out text, against 2.31 for the xz compressor",
        "97.0% of answers end",
        "orders 71.2% of held-out comparisons correctly",
        "75.0% is the best possible",
        "After PPO the gold reward is 0.93, against 0.21 before it, a gain of 0.72, at a KL of 6.1 nats",
        "the confidence interval of the gain is 0.61 to 0.83",
    ):
        assert words in summary, summary
    assert "no gain at all" not in full.text
    assert (
        "Proxy reward 0.1 before PPO, 1.4 after, answers that end on their own: 97.0% before, 99.0% after" in full.text
    )
    assert "Brier score 0.19" in full.text


def test_captions_state_what_is_seen(full):
    captions = " ".join(image["alt"] for image in full.images)
    for words in (
        "(65,536 bytes), 0.279 fewer than the xz compressor's 2.31",
        "reward model, held-out comparisons 71.2%",
        "over 1,200 pairs",
        "PPO's gold reward is 0.93 at a KL of 6.1 nats (square root 2.47)",
        "best of 64 reaches 0.781 at 3.17 nats",
    ):
        assert words in captions, captions


def test_user_text_is_escaped(full):
    assert "<script>alert(1)</script>" in full.text
    assert "tiny <recipe>: training report" in full.text
    assert "data.path = 'a<b'" in full.text
    assert "Name & colour?" in full.text
    assert "b" not in full.tags


def test_stages_configs_and_answers_are_tabled(full):
    assert full.tags.count("details") == 4
    assert full.tags.count("blockquote") == 1
    assert "4.2 M" in full.text
    assert "1.23 M" in full.text
    assert "blue\n(gold reward 0.9)" in full.text


def test_an_interval_around_zero_is_called_no_gain(tmp_path):
    make_stage(make_recipe(tmp_path, ["ppo"]), "ppo")
    path = tmp_path / "ppo" / "result.json"
    path.write_text(path.read_text().replace("[0.61, 0.83]", "[-0.1, 0.83]"))
    assert "includes no gain at all" in report_of(tmp_path).text


def test_missing_stages_are_named_and_the_rest_is_shown(tmp_path):
    make_recipe(tmp_path)
    make_stage(tmp_path, "lm")
    make_stage(tmp_path, "sft")
    (tmp_path / "sft" / "result.json").unlink()
    (tmp_path / "reward").mkdir()
    page = report_of(tmp_path)
    assert len(page.images) == 5
    for words in (
        "1 of 4 stages are finished",
        "Something is missing from sft, reward, ppo",
        "stopped at step 299",
        "sft/result.json is absent",
        "reward/metrics.jsonl is absent",
        "The folder ppo is absent",
    ):
        assert words in page.text, words


def test_a_recipe_that_has_not_begun_still_makes_a_report(tmp_path):
    page = report_of(make_recipe(tmp_path))
    assert "0 of 4 stages are finished" in page.text
    assert page.images == []


@pytest.mark.parametrize("n_rows", [1, 2, 30])
def test_short_logs_are_drawn(tmp_path, n_rows):
    make_recipe(tmp_path)
    for name in ROWS:
        make_stage(tmp_path, name, n_rows=n_rows)
    page = report_of(tmp_path)
    assert len(page.images) == 12
    assert ("the only one logged" in page.text) == (n_rows == 1)


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    make_stage(make_recipe(tmp_path, ["lm"]), "lm", n_rows=0)
    rows = '{"step": 1, "lm/nats_per_token": 3.0}\n{"step": 2, "lm/nats_per_token": "nan"}\n'
    (tmp_path / "lm" / "metrics.jsonl").write_text(rows)
    (tmp_path / "lm" / "result.json").write_text(
        '{"evaluation": {"bits_per_byte": NaN, "samples": null}, "seconds": null}'
    )
    page = report_of(tmp_path)
    assert [image["alt"] for image in page.images] == [
        "The training loss is 3 nats per token at step 1, the only one logged."
    ]
    assert "nan" not in page.text


def test_broken_files_are_reported_not_raised(tmp_path):
    make_stage(make_recipe(tmp_path, ["lm"]), "lm")
    (tmp_path / "lm" / "result.json").write_text("{")
    (tmp_path / "lm" / "metrics.jsonl").write_text('rubbish\n{"step": 1}\n')
    page = report_of(tmp_path)
    assert "lm/result.json is not JSON" in page.text
    assert "The log cannot be read" in page.text
    assert "line 1: not a row of metrics" in page.text


@pytest.mark.parametrize("text", [None, "{", "[]", '{"stages": "lm"}'])
def test_a_folder_that_is_no_recipe_is_an_error(tmp_path, text):
    if text is not None:
        (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.json: .*gptjax run"):
        write_report(tmp_path)


def test_a_stage_may_have_another_name_than_its_task(tmp_path):
    make_recipe(tmp_path, ["base"])
    make_stage(tmp_path, "lm")
    (tmp_path / "lm").rename(tmp_path / "base")
    page = report_of(tmp_path)
    assert "Language model (base)" in page.text
    assert len(page.images) == 3
