"""A tokenizer whose words are ids, and comparisons in its words."""

from types import SimpleNamespace

from gptjax.data.preferences import Comparison, Response

TOKENIZER = SimpleNamespace(
    pad_id=0,
    bos_id=1,
    system_id=2,
    user_id=3,
    assistant_id=5,
    end_id=6,
    encode=lambda text: [int(word) for word in text.split()],
)
PROMPT = [{"role": "user", "content": "10"}]


def comparison(*contents, ranks=None, ended=True):
    responses = [Response(content=content, ended=ended) for content in contents]
    return Comparison(messages=PROMPT, responses=responses, ranks=ranks or list(range(1, len(contents) + 1)))
