"""Requests with tools: the same tokens as a record with tools, which the chat template renders."""

import asyncio
import json

import numpy as np
import pytest

from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import memory_source
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving.errors import RequestError
from rmjax.serving.http import compat, schemas
from rmjax.serving.protocol import Call
from rmjax.serving.services.inputs import TOKENS, InputReader, check_messages

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
RENDERED = f"{json.dumps(TOOLS)}user: Weather?assistant: Sunny."


@pytest.fixture
def reader():
    tokenizer = Tokenizer.load("")
    tokenizer.base.chat_template = TEMPLATE
    reader = InputReader(tokenizer, len(tokenizer), 256)
    yield reader
    reader.close()


def tokens(reader, conversations, source, call):
    found, _ = asyncio.run(reader.tokenize(conversations, source, call))
    return [reader_tokens.tolist() for reader_tokens in found]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_a_request_with_tools_has_the_tokens_of_a_record_with_tools(reader, tools):
    record = {"messages": MESSAGES, "tools": tools}
    comparison = next(parse_sources(memory_source([record]), ReadOptions(labeled=False)))
    tokenizer = Tokenizer.load("")
    tokenizer.base.chat_template = TEMPLATE
    (tree,) = make_trees([comparison], tokenizer)
    assert tokenizer.base.decode(tree.branches[0]) == RENDERED
    texts = [json.dumps(given).encode() for given in (record, MESSAGES, {"messages": MESSAGES, "tools": "[]"})]
    source, conversations, call = reader.parse({"messages": np.array(texts, object)[:, None]}, Call())
    with_tools, without, none = tokens(reader, conversations, source, call)
    assert with_tools == tree.branches[0].tolist()
    assert without == none == tokenizer.encode([MESSAGES])[0].tolist()


def test_truncated_texts_keep_the_token_at_which_the_reward_is_read(reader):
    at_eos = InputReader(Tokenizer.load("", readout="eos"), 260, 4)
    assert tokens(at_eos, ["abcdef", "ab"], TOKENS, Call(truncate="right")) == tokens(
        reader, ["abc<eos>", "ab<eos>"], TOKENS, Call()
    )
    at_eos.close()
    mean = InputReader(Tokenizer.load("", readout="response_mean"), 260, 4)
    with pytest.raises(RequestError, match=r"row 0 \(truncated to 4 tokens\): .* is not followed by a response"):
        tokens(mean, [MESSAGES], TOKENS, Call(truncate="left"))
    mean.close()


@pytest.mark.parametrize("body", [schemas.VllmBody, schemas.TokenizeBody])
def test_the_bodies_of_vllm_take_tools(reader, body):
    source, conversation = compat._text_or_messages("input", compat.UNSET, body(messages=MESSAGES, tools=TOOLS))
    (found,) = tokens(reader, [conversation], source, Call())
    assert Tokenizer.load("").base.decode(found) == RENDERED


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            {"messages": MESSAGES, "tools": "x"},
            "row 0: tools is 'x'; expected a list of objects that describe a tool each",
        ),
        ({"tools": TOOLS}, "row 0 is null; expected a list of chat messages"),
    ],
)
def test_invalid_tools_are_named(reader, value, reason):
    with pytest.raises(RequestError, match=reason):
        reader.parse({"messages": np.array([[json.dumps(value).encode()]], object)}, Call())


def test_messages_alone_have_no_tools():
    assert check_messages("x", MESSAGES) == check_messages("x", MESSAGES, "") == MESSAGES
