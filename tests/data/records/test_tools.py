"""Tools: from the record or the request to the chat template."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source
from rmjax.data.records.tools import split_tools, tools_message
from rmjax.data.schema import Tree
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.tokenizer import Tokenizer

USER = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "Sunny."}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
PAIR = {"prompt": [USER], "chosen": "Sunny.", "rejected": "No."}
TEMPLATE = (
    "{% if tools %}TOOLS{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] + '\n' }}{% endfor %}"
)
RENDERED = f"TOOLS {json.dumps(TOOL)}\nuser: Weather?\nassistant: Sunny.\n"


@pytest.fixture
def tokenizer():
    """The built-in tokenizer, with a template that renders tools."""
    tokenizer = Tokenizer.load("")
    tokenizer.base.chat_template = TEMPLATE
    return tokenizer


def parse(record, **options):
    (found,) = parse_sources(memory_source([record]), ReadOptions(**options))
    return found


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), f" {json.dumps([TOOL])}\n"])
@pytest.mark.parametrize(
    ("record", "options"),
    [
        (PAIR, {}),
        ({"prompt": "Weather?", "chosen": "Sunny.", "rejected": "No."}, {"strings": "chat"}),
        ({"messages": [USER, ANSWER]}, {}),
        ({"prompt": [USER], "responses": [[ANSWER], "No."], "ranks": [1, 2]}, {}),
        ({"prompt": [USER], "response": "Sunny.", "score": 1}, {}),
    ],
)
def test_tools_are_rendered_by_the_template(tokenizer, tools, record, options):
    comparison = parse(record | {"tools": tools}, **options)
    assert tokenizer.render(comparison.conversations[0]) == RENDERED
    (tree,) = make_trees([comparison], tokenizer)
    assert isinstance(tree, Tree)
    text = tokenizer.base.decode([*tree.prefix, *tree.branches[0]])
    assert text.startswith(RENDERED[:-1])


@pytest.mark.parametrize("tools", [None, [], "[]", "", " ", {}, "null"])
def test_no_tools_are_no_tools(tokenizer, tools):
    comparison = parse(PAIR | {"tools": tools})
    assert comparison.conversations == parse(PAIR).conversations
    assert tokenizer.render(comparison.conversations[0]) == "user: Weather?\nassistant: Sunny.\n"


@pytest.mark.parametrize(
    "tools", ["x", "[1]", [1], ["get_weather"], [{}], {"name": "f"}, 3, '{"name": "f"}', "[" * 9999]
)
def test_other_values_are_refused(tools):
    reason = f"tools is {tools!r:.60}; expected a list of objects that describe a tool each, or its JSON text"
    assert parse(PAIR | {"tools": tools}).reason == reason


@pytest.mark.parametrize("record", [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"text": "t"}])
def test_tools_beside_strings_are_refused(record):
    bad = parse(record | {"tools": [TOOL]}, labeled=False)
    assert bad.reason.startswith(
        "tools is given, and the conversation is a string, which no chat template renders; set"
    )


def test_null_fields_of_parquet_are_no_part_of_a_tool(tmp_path):
    other = {"type": "function", "function": {"name": "f", "description": "d", "parameters": None}}
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR | {"tools": [TOOL]}, PAIR | {"tools": [other]}]), path)
    found, _ = read_comparisons(str(path), ReadOptions())
    tools = [split_tools(comparison.conversations[0])[1] for comparison in found]
    assert tools == [[TOOL], [{"type": "function", "function": {"name": "f", "description": "d"}}]]


def test_tools_are_no_prompt_and_are_named_as_read():
    found, report = read_comparisons(memory_source([PAIR | {"tools": [TOOL]}]), ReadOptions())
    assert (len(found), report.no_prompt, report.used["tools"], report.unread) == (1, 0, "tools", {})


def test_a_special_token_in_a_tool_is_refused():
    tokenizer = Tokenizer.load("")
    comparison = parse(PAIR | {"tools": [{"name": "<|im_end|>"}]})
    (reason,) = make_trees([comparison], tokenizer)
    assert "'<|im_end|>'" in reason


def test_splitting_gives_the_messages_and_the_tools():
    conversation = [*tools_message([TOOL]), USER, ANSWER]
    assert split_tools(conversation) == ([USER, ANSWER], [TOOL])
    assert split_tools([USER]) == ([USER], [])
    assert split_tools([{"role": "tools", "content": "[]"}, USER])[1] == []  # a message of that role, without tools
