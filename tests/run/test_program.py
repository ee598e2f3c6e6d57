"""Rewards that are programs, and prompts with given answers."""

import math

import numpy as np
import pytest

from gptjax.data.tokenizer import train_tokenizer
from gptjax.eval.answers import Answer
from gptjax.run.tasks.asked import Asked
from gptjax.run.tasks.choices import Choices
from gptjax.run.tasks.grpo import GrpoTask
from gptjax.run.tasks.ppo import PpoTask
from gptjax.run.tasks.program import program_figures, reward_program
from gptjax.train.ppo_config import PpoConfig

ANSWERS = [Answer(text="7", ended=True, tokens=(1,)), Answer(text="8", ended=False, tokens=(1, 2))]
RECORDS = [{"sum": "7"}, {"sum": "7"}]


def right(prompt, answer, ended):
    return float(ended and answer == prompt["sum"])


def test_a_program_sees_the_prompts_line_and_the_answer():
    np.testing.assert_array_equal(program_figures(right, RECORDS, ANSWERS)["reward"], [1.0, 0.0])


def test_a_program_may_report_more_and_leave_an_answer_out():
    def program(prompt, answer, ended):
        return {"reward": math.nan if answer == "8" else 1, "right": answer == prompt["sum"]}

    found = program_figures(program, RECORDS, ANSWERS)
    np.testing.assert_array_equal(found["reward"], [1.0, math.nan])
    np.testing.assert_array_equal(found["right"], [1.0, 0.0])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda prompt, answer, ended: prompt["total"], "on the answer '7' failed: KeyError: 'total'"),
        (lambda prompt, answer, ended: "1", "gave reward '1': expected a finite number"),
        (lambda prompt, answer, ended: math.inf, "gave reward inf: expected a finite number"),
        (lambda prompt, answer, ended: {"right": 1}, r"gave no 'reward' but \['right'\]"),
        (lambda prompt, answer, ended: {"reward": 1, answer: 1}, r"gives \['7', 'reward'\] for one answer and \['8'"),
    ],
)
def test_what_a_program_did_wrong_is_named(program, message):
    with pytest.raises(ValueError, match=message):
        program_figures(program, RECORDS, ANSWERS)


def test_a_program_is_found_by_file_or_module(tmp_path):
    (tmp_path / "rewards.py").write_text("def mine(prompt, answer, ended):\n    return 3.0\n")
    assert reward_program(f"{tmp_path}/rewards.py:mine")({}, "", True) == 3.0
    assert reward_program("math:fsum") is math.fsum


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rewards.py", "write FILE.py:NAME or MODULE:NAME"),
        ("absent.py:x", r"no such file: absent.py"),
        ("no_such_module_1:x", "No module named 'no_such_module_1'"),
        ("{folder}/rewards.py:other", "has no function other; it has mine"),
        ("{folder}/broken.py:x", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_program_that_is_not_there_is_explained(name, message, tmp_path):
    (tmp_path / "rewards.py").write_text("def mine(prompt, answer, ended):\n    return 3.0\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=message):
        reward_program(name.format(folder=tmp_path))


@pytest.mark.parametrize("task", [GrpoTask, PpoTask])
def test_a_policy_needs_a_reward(task):
    with pytest.raises(ValueError, match=r"give task.reward_from or task.program: there is nothing to learn from"):
        task(reward_from=None)


def test_ptx_needs_a_corpus():
    with pytest.raises(ValueError, match=r"task.ppo.ptx_coefficient is 2.0, but task.pretrain is None"):
        PpoTask(ppo=PpoConfig(ptx_coefficient=2.0))


def asked(choices):
    messages = [{"role": "user", "content": "q"}]
    return Asked(messages, None, {"messages": messages} | ({} if choices is None else {"choices": choices}))


def test_given_answers_are_judged_by_their_log_probability():
    tokenizer = train_tokenizer(["abc q " * 20], 270)
    prompts = [asked({"true": ["a"], "false": ["b", "c"]}), asked(None), asked({"true": ["b", "c"], "false": ["a"]})]
    choices = Choices(prompts, tokenizer, 4)
    assert choices.rows is not None
    assert choices.rows.tokens_BCT.shape[:2] == (2, 3)
    assert choices.rows.tokens_BCT.shape[2] % 4 == 0
    # in both prompts the first answer has log 1/2, the second log 1/4, the third log 1/4: true 1/2 and 3/4
    found = choices.figures(lambda batch: np.tile(np.log([[0.5, 0.25, 0.25]]), (len(batch.lengths_BC), 1)), 8)
    assert found == {"mc1": 1.0, "mc2": pytest.approx((0.5 + 0.75) / 2)}
    assert Choices([asked(None)], tokenizer).figures(lambda batch: None, 8) == {}


@pytest.mark.parametrize(
    "choices", [{"true": ["a"]}, {"true": [], "false": ["b"]}, {"true": "a", "false": ["b"]}, ["a"]]
)
def test_choices_that_are_none_are_refused(choices):
    with pytest.raises(ValueError, match="field 'choices' of the prompt 'q': expected lists of texts"):
        Choices([asked(choices)], train_tokenizer(["abc q " * 20], 270))
