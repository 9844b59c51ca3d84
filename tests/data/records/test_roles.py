"""Roles under other names, and messages with `from` and `value`, from every kind of source."""

import csv
import json

import pytest

from rmjax.data.records.fields import BadField, messages
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.roles import normalize_role
from rmjax.data.records.sources import memory_source

EXPECTED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize("role", ["Human", "human", "HUMAN", "prompter", "User", " user "])
def test_names_of_the_user(role):
    assert normalize_role(role) == "user"


@pytest.mark.parametrize("role", ["gpt", "GPT", "chatgpt", "bot", "model", "chatbot", "Assistant", "ASSISTANT"])
def test_names_of_the_assistant(role):
    assert normalize_role(role) == "assistant"


@pytest.mark.parametrize("role", ["system", "tool", "developer", "function", "critic", "Critic", ""])
def test_other_roles_are_kept(role):
    assert normalize_role(role) == role


def test_from_and_value_become_role_and_content():
    assert messages(TURNS, "chosen") == EXPECTED
    assert messages([{"from": "observation", "value": "3 °C", "id": 7}], "prompt") == [
        {"role": "tool", "content": "3 °C", "id": 7}
    ]
    # A message that has a role keeps it; Parquet gives all keys to all messages.
    assert messages([{"role": "Bot", "content": "Hi", "from": None, "value": None}], "x") == [
        {"role": "assistant", "content": "Hi"}
    ]
    assert messages([{"from": "GPT", "value": "Hi", "role": None, "content": None}], "x") == [
        {"role": "assistant", "content": "Hi"}
    ]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"speaker": "human", "text": "Hi"}, "expected an object with role and content, or from and value"),
        ({"from": "human", "text": "Hi"}, r"message\[0\]\.content of chosen is None; expected a string"),
        ({"from": 3, "value": "Hi"}, "expected an object with role"),
    ],
)
def test_other_messages_are_refused(message, words):
    with pytest.raises(BadField, match=words):
        messages([message], "chosen")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "memory"])
@pytest.mark.parametrize("turns", [TURNS, [{"role": m["from"].upper(), "content": m["value"]} for m in TURNS]])
def test_every_source_maps_roles(tmp_path, kind, turns):
    worse = [*turns[:1], {**turns[1], "value" if "value" in turns[1] else "content": "No"}]
    record = {"chosen": turns, "rejected": worse}
    path = tmp_path / f"a.{kind}"
    if kind == "memory":
        sources = [memory_source([record])]
    elif kind == "jsonl":
        path.write_text(json.dumps(record) + "\n")
        sources = [str(path)]
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([record.keys(), map(json.dumps, record.values())])
        sources = [str(path)]
    (comparison,), _ = read_comparisons(sources, ReadOptions())
    assert comparison.conversations == (EXPECTED, [EXPECTED[0], {"role": "assistant", "content": "No"}])


def test_roles_are_mapped_before_prompt_and_response_are_compared():
    record = {"prompt": EXPECTED[:1], "chosen": TURNS, "rejected": [*TURNS[:1], {"from": "bot", "value": "No"}]}
    (comparison,), _ = read_comparisons([memory_source([record])], ReadOptions())
    assert comparison.conversations[0] == EXPECTED
