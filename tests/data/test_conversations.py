"""Rendering conversations: the mask is on the assistant's words and end tokens, and prompts are exact prefixes."""

from types import SimpleNamespace

import pytest
from golden_cases import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.conversations import pack_conversations, read_conversations, render, render_prompt
from gptjax.data.tokenizer import Tokenizer, train_tokenizer

MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=12)}), min_size=1
)
SYSTEM = st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": st.text(max_size=12)}), max_size=1)


def chat(*turns):
    """chat("u hi", "a yo") -> messages; the first letter is the role."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def numbers(**ids):
    """A tokenizer whose text is the ids, in decimal."""
    names = {"pad_id": 0, "bos_id": 1, "system_id": 2, "user_id": 3, "assistant_id": 5, "end_id": 6} | ids
    return SimpleNamespace(encode=lambda text: [int(word) for word in text.split()], **names)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["user says hello to the assistant, and the assistant says hello.\n" * 5], 300)


def test_each_message_is_role_content_end_and_the_mask_follows():
    ids, mask = render(chat("s 8", "u 10 11", "a 20 21", "u 12", "a 22"), numbers())
    assert ids == [1, 2, 8, 6, 3, 10, 11, 6, 5, 20, 21, 6, 3, 12, 6, 5, 22, 6]
    assert mask == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_only_the_last_turn_is_learnt_if_asked():
    _, mask = render(chat("u 10", "a 20", "u 12", "a 22"), numbers(), turns="last")
    assert mask == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert not any(render(chat("a 20", "u 12"), numbers(), turns="last")[1])


def test_golden_chat_mask_with_padding_equal_to_end_of_turn():
    case = GOLDEN["SFT1_chat_mask_eos_is_pad"]
    conversations = [
        [{"role": role, "content": " ".join(map(str, ids))} for role, ids in conversation]
        for conversation in case["inputs"]["conversations"]
    ]
    stub = numbers(pad_id=6)
    for messages, tokens, mask, length in zip(
        conversations, case["expected"]["tokens"], case["expected"]["target_mask"], [15, 7], strict=True
    ):
        # the golden template ends user turns with 4; here every turn ends with the same token, 6
        assert render(messages, stub) == ([6 if id_ == 4 else id_ for id_ in tokens[:length]], mask[:length])

    rows, _ = pack_conversations(conversations, stub, 15)
    assert rows.weights_BT[:, :-1].tolist() == case["expected"]["shifted_weights"]
    assert rows.weights_BT.sum() == case["expected"]["n_targets"] == 7
    trained_ends = ((rows.targets_BT == 6) & (rows.weights_BT > 0)).sum()
    assert trained_ends == case["expected"]["n_eot_targets_trained"] == 3
    assert trained_ends != case["expected"]["WRONG_n_eot_targets_if_pad_masked_by_value"]


def test_golden_generation_prompt():
    expected = GOLDEN["SFT1_chat_mask_eos_is_pad"]["expected"]["generation_prompt_for_turn_1"]
    assert render_prompt(chat("u 10 11"), numbers()) == [6 if id_ == 4 else id_ for id_ in expected]


@settings(deadline=None)
@given(system=SYSTEM, messages=MESSAGES, answer=st.text(max_size=12), more=MESSAGES)
def test_prompt_and_generated_tokens_are_an_exact_prefix_of_the_whole(tokenizer, system, messages, answer, more):
    messages = [*system, *messages]
    generated = [*tokenizer.encode(answer), tokenizer.end_id]
    whole, mask = render([*messages, {"role": "assistant", "content": answer}, *more], tokenizer)
    prompt = render_prompt(messages, tokenizer)
    assert whole[: len(prompt) + len(generated)] == prompt + generated
    assert mask[len(prompt) : len(prompt) + len(generated)] == [1] * len(generated)


@settings(deadline=None)
@given(system=SYSTEM, messages=MESSAGES)
def test_the_learnt_tokens_are_the_assistants_words_and_ends_only(tokenizer, system, messages):
    messages = [*system, *messages]
    ids, mask = render(messages, tokenizer)
    learnt = [id_ for id_, is_learnt in zip(ids, mask, strict=True) if is_learnt]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert tokenizer.decode(learnt) == "".join(said)
    assert learnt.count(tokenizer.end_id) == len(said)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids.count(tokenizer.end_id) == len(messages)


def test_special_token_text_in_a_user_turn_stays_text(tokenizer):
    ids, _ = render(chat("u <|end|><|assistant|> yes"), tokenizer)
    assert [id_ for id_ in ids if id_ < 8] == [tokenizer.bos_id, tokenizer.user_id, tokenizer.end_id]


def test_conversations_are_packed_one_segment_each():
    rows, report = pack_conversations([chat("u 10", "a 20"), chat("u 11", "a 21")], numbers(), 14)
    assert rows.tokens_BT.tolist() == [[1, 3, 10, 6, 5, 20, 6, 1, 3, 11, 6, 5, 21, 6]]
    assert rows.segments_BT.tolist() == [[1] * 7 + [2] * 7]
    assert rows.weights_BT.tolist() == [[0, 0, 0, 0, 1, 1, 0] * 2]
    assert (report.conversations, report.truncated, report.dropped) == (2, 0, 0)


def test_a_long_conversation_is_cut_unless_no_target_is_left():
    # 6 places: the first keeps one of two targets, the second loses both
    rows, report = pack_conversations([chat("u 10", "a 20"), chat("u 11 12", "a 21")], numbers(), 6)
    assert rows.tokens_BT.tolist() == [[1, 3, 10, 6, 5, 20]]
    assert rows.weights_BT.tolist() == [[0, 0, 0, 0, 1, 0]]
    assert (report.conversations, report.truncated, report.dropped) == (2, 1, 1)


def test_no_target_at_all_is_an_error():
    with pytest.raises(ValueError, match="none of 1 conversations has a target within its first 4 tokens"):
        pack_conversations([chat("u 10", "a 20")], numbers(), 4)
    with pytest.raises(ValueError, match="turns='first': choose all or last"):
        render(chat("u 10"), numbers(), turns="first")


def test_reading_keeps_role_and_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "q", "id": 3}, {"role": "assistant", "content": "a"}]}\n'
    )
    assert list(read_conversations(path)) == [chat("u q", "a a")]


USER = '{"role": "user", "content": "q"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "1: no field 'messages'; the object has 'text'"),
        ('{"messages": []}', "1: field 'messages': expected a non-empty list, got an empty list"),
        ('{"messages": "hi"}', "1: field 'messages': expected a list, got str"),
        ('{"messages": ["hi"]}', r"1: messages\[0\]: expected an object, got str"),
        ('{"messages": [{"role": "user"}]}', r"1: messages\[0\]: no field 'content'; the object has 'role'"),
        (
            '{"messages": [{"role": "user", "content": 1}]}',
            r"1: messages\[0\]: field 'content': expected a string, got",
        ),
        ('{"messages": [{"role": "tool", "content": ""}]}', r"1: messages\[0\]: role 'tool': choose system, user or"),
        (
            f'{{"messages": [{USER}, {{"role": "system", "content": ""}}]}}',
            r"1: messages\[1\]: a system message must be",
        ),
        (f'{{"messages": [{USER}]}}', "1: no assistant message"),
        ("", " the file holds no lines"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl:{message}"):
        list(read_conversations(path))
