"""generate and chat, on a run folder whose models were never trained."""

import dataclasses
import io
import json

import chex
import jax
import optax
import pytest

from gptjax import cli
from gptjax.data.tokenizer import train_tokenizer
from gptjax.model.config import ModelConfig
from gptjax.model.pure import language_model, scalar_model
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.mesh import MeshConfig, make_mesh
from gptjax.serve import terminal
from gptjax.serve.model import choose_stage, load
from gptjax.train.update import initial_state

CONFIG = ModelConfig(vocab_size=300, layers=1, width=16, heads=2, hidden=32, max_length=96)
STAGES = {"base": "lm", "taught": "sft", "judge": "reward", "tuned": "ppo", "later": "sft"}
TEXTS = [f"What does number {n} do? It adds {n} to the sum and returns the result." for n in range(40)]


@pytest.fixture(scope="module", autouse=True)
def quiet_start():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptjax.serve.model.start_jax", lambda: None)  # JAX stays as the tests configured it
        yield


@pytest.fixture(scope="session")
def policies():
    return {}


@pytest.fixture(scope="session")
def run(tmp_path_factory, policies):
    """A run whose last stage is not finished."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = train_tokenizer(TEXTS, CONFIG.vocab_size)
    language, scalar = language_model(CONFIG), scalar_model(CONFIG)
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        for number, (name, task) in enumerate(STAGES.items()):
            stage = folder / name
            stage.mkdir(parents=True)
            tokenizer.save(stage / "tokenizer.model")
            (stage / "model.json").write_text(json.dumps(dataclasses.asdict(CONFIG)))
            key = jax.random.key(number)
            params, extra = language.init(key), {}
            policies[name] = params
            if task == "ppo":
                params = {"policy": params, "value": scalar.init(key)}
                extra = {"kl_coefficient": jax.numpy.float32(0.1)}
            if name == "later":
                continue
            (stage / "result.json").write_text(json.dumps({"task": task}))
            checkpoints = Checkpoints(stage / "checkpoints", keep=1)
            checkpoints.save(initial_state(params, optax.sgd(0.1), key, **extra), 3, {})
            checkpoints.close()
    (folder / "recipe.json").write_text(json.dumps({"name": "tiny", "stages": list(STAGES)}))
    return folder


@pytest.fixture(scope="module")
def tuned(run, quiet_start):
    return load(run, None)


@pytest.fixture
def talk(run, tuned, monkeypatch, capsys):
    """Chat with piped lines -> (stdout, stderr)."""
    monkeypatch.setattr(terminal, "load", lambda run, stage: tuned)

    def chat(*lines, people=False):
        stdin = type("Stdin", (io.StringIO,), {"isatty": lambda self: people})
        monkeypatch.setattr("sys.stdin", stdin("".join(f"{line}\n" for line in lines)))
        cli.main(["chat", str(run), "--max-tokens", "6"])
        return capsys.readouterr()

    return chat


@pytest.fixture
def said(monkeypatch):
    """Replaces sampling; every prompt given to the model is noted, every answer is "ok"."""
    prompts = []

    def streamer(*args, end_id, sampling, **kwargs):
        said.sampling = sampling

        def stream(ids, key):
            prompts.append(list(ids))
            yield from (*said.tokens, end_id)

        return stream

    said = type("Said", (), {"prompts": prompts, "tokens": ()})()
    monkeypatch.setattr(terminal, "streamer", streamer)
    return said


def generated(capsys, run, *options):
    cli.main(["generate", str(run), "--prompt", "What does 3 do?", "--max-tokens", "6", *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["base", "taught", "tuned"])
def test_load_reads_the_parameters_of_a_stage(run, policies, name):
    loaded = load(run, name)
    assert (loaded.stage, loaded.task, loaded.config) == (name, STAGES[name], CONFIG)
    chex.assert_trees_all_equal(loaded.params, policies[name])


def test_the_last_finished_stage_that_talks_is_the_default(run):
    assert load(run, None).stage == "tuned"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("nosuch", "unknown stage 'nosuch'"),
        ("later", "stage 'later' is not finished"),
        ("judge", "stage 'judge' is a reward model"),
    ],
)
def test_other_stages_are_refused(run, stage, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", str(run), "--prompt", "a", "--stage", stage])
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out) == (2, "")
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.endswith("that can talk: base, taught, tuned\n")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run in .*recipe.json is missing"):
        load(tmp_path, None)


def test_generate_prints_one_json_object(run, capsys):
    found = json.loads(generated(capsys, run, "--json"))
    assert list(found) == ["stage", "prompt", "answer", "ended", "tokens"]
    assert (found["stage"], found["prompt"]) == ("tuned", "What does 3 do?")
    assert found["ended"] or found["tokens"] == 6


def test_generate_writes_the_answer_alone_on_stdout(run, tuned, said, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "load", lambda run, stage: tuned)
    said.tokens = tuned.tokenizer.encode("It adds 3.\n")
    assert generated(capsys, run) == "It adds 3.\n\n"
    found = json.loads(generated(capsys, run, "--json"))
    assert (found["answer"], found["ended"], found["tokens"]) == ("It adds 3.\n", True, len(said.tokens) + 1)


def test_without_a_longest_answer_half_of_what_the_model_reads_is_left_for_the_prompt(run, said, capsys):
    # the model has 96 positions, as many as an answer usually has tokens
    cli.main(["generate", str(run), "--prompt", "What does 3 do?"])
    assert said.sampling.max_new_tokens == 48


def test_a_pretrained_stage_continues_the_text(run, said, capsys):
    tokenizer = load(run, "base").tokenizer
    generated(capsys, run, "--stage", "base")
    assert said.prompts == [[tokenizer.bos_id, *tokenizer.encode("What does 3 do?")]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-tokens", "0"], "--max-tokens must be at least 1"),
        (["--top-p", "2"], r"--top-p must lie in \(0, 1\]"),
        (["--temperature", "-1"], "--temperature must not be negative"),
        (["--temperature", "nan"], "--temperature must be finite, got nan"),
        (["--seed", "-1"], r"--seed must lie in 0\.\.4294967295, got -1"),
        (["--max-tokens", "96"], "leaves no room for a prompt: the model has 96 positions"),
        (["--max-tokens", "92"], "the model has room for 1 to 4"),
    ],
)
def test_generate_refuses(run, options, message, monkeypatch):
    monkeypatch.setenv("GPTJAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match=message):
        cli.main(["generate", str(run), "--prompt", "What does number 7 do?", *options])


def test_chat_answers_piped_lines_and_leaves_at_their_end(run, talk):
    shown = talk("", "What does 3 do?", "And 4?")
    assert "you>" not in shown.out
    assert shown.out.endswith("\n")
    assert shown.out.count("\n") >= 2
    assert shown.err == f"stage tuned of {run}; /help lists commands\n"


def test_chat_commands(talk, said):
    shown = talk("/help", "/nosuch", "/quit", "unheard")
    assert "/reset" in shown.out
    assert "unknown command /nosuch" in shown.err
    assert not said.prompts


def test_chat_shows_a_prompt_to_people(talk, said):
    assert talk("/quit", people=True).out == "you> "


def test_chat_keeps_the_conversation_until_reset(tuned, talk, said):
    tokenizer = tuned.tokenizer
    said.tokens = tokenizer.encode("ok")
    assert talk("a", "b", "/reset", "c").out == "ok\nok\nok\n"

    def turn(text):
        return [tokenizer.user_id, *tokenizer.encode(text), tokenizer.end_id, tokenizer.assistant_id]

    first, second, third = said.prompts
    assert first == [tokenizer.bos_id, *turn("a")]
    assert second == [*first, *said.tokens, tokenizer.end_id, *turn("b")]
    assert third == [tokenizer.bos_id, *turn("c")]


def test_chat_drops_the_oldest_turns_with_a_notice(talk, said):
    shown = talk("x" * 30, "y" * 30, "z" * 30)
    assert shown.err.count("the conversation is too long: its oldest turn went") == 1
    assert max(map(len, said.prompts)) <= 90
    assert len(said.prompts) == 3


def test_chat_refuses_a_message_that_is_too_long_and_goes_on(talk, said):
    shown = talk("one", "x" * 200, "two")
    assert "error: the message takes 204 tokens, there is room for 90" in shown.err
    assert len(said.prompts) == 2
    assert said.prompts[1][: len(said.prompts[0])] == said.prompts[0]


def test_ctrl_c_stops_the_answer_only(tuned, talk, monkeypatch):
    tokenizer = tuned.tokenizer
    prompts = []

    def streamer(*args, **kwargs):
        def stream(ids, key):
            prompts.append(ids)
            yield from tokenizer.encode("ok")
            raise KeyboardInterrupt

        return stream

    monkeypatch.setattr(terminal, "streamer", streamer)
    assert talk("a", "b").out == "ok\nok\n"
    assert len(prompts[1]) == 2 * len(prompts[0]) + len(tokenizer.encode("ok"))


def test_control_characters_reach_a_pipe_but_not_a_terminal(tuned, talk, said, monkeypatch):
    said.tokens = tuned.tokenizer.encode("a\x1b[2J\tb")
    assert talk("hello").out == "a\x1b[2J\tb\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert talk("hello").out == "a\ufffd[2J\tb\n"


def test_chat_needs_a_stage_that_was_taught(run, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", str(run), "--stage", "base"])
    assert stop.value.code == 2
    assert "one of sft, ppo, dpo, grpo, rejection" in capsys.readouterr().err


def test_characters_are_written_whole(tuned):
    tokenizer = tuned.tokenizer
    ids = [*tokenizer.encode("é\u4e2d\U0001f600"), tokenizer.encode("é")[0], tokenizer.end_id]
    written = []
    answer = terminal.speak(iter(ids), tokenizer, written.append)
    assert [part for part in written if part] == ["é", "\u4e2d", "\U0001f600", "\ufffd"]
    assert (answer.text, answer.ended) == ("é\u4e2d\U0001f600\ufffd", True)


def test_an_exchanged_tokenizer_is_refused(run, quiet_start):
    stage = choose_stage(run, None)[0]
    path = run / stage / "result.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"data_fingerprint": "0123-fedcba9876543210"}))
        with pytest.raises(ValueError, match=r"tokenizer\.model is not the tokenizer .*fedcba9876543210 then"):
            load(run, None)
    finally:
        path.write_text(before)
