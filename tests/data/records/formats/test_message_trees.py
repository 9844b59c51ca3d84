"""OpenAssistant's trees and flat messages, and UltraInteract's turns, on invented records of the published layouts."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import BadRecord, memory_source

ROLES = {"prompter": "user", "assistant": "assistant"}
UNRANKED = "fewer than two of a message's replies have a rank, so there is no preference"


def message(text, role, rank=None, replies=()):
    return {
        "message_id": f"id-{text}", "user_id": "u", "text": text, "role": role, "lang": "en", "review_count": 3,
        "deleted": False, "rank": rank, "synthetic": False, "emojis": {"+1": 2}, "replies": list(replies),
    }  # fmt: skip


#       q1 - a1 (rank 1) - q2 - b1 (rank 0), b2 (rank 1), b3 (no rank)
#          \ a2 (rank 0) - q3 - c1 (no rank)
#          \ a3 (rank 2)
SECOND = message("q2", "prompter", 0, [message(f"b{i + 1}", "assistant", rank) for i, rank in enumerate((0, 1, None))])
THIRD = message("q3", "prompter", 1, [message("c1", "assistant")])
ANSWERS = [
    message("a1", "assistant", 1, [SECOND]),
    message("a2", "assistant", 0, [THIRD]),
    message("a3", "assistant", 2),
]
TREE = {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": message("q1", "prompter", None, ANSWERS)}


def flat(node, parent=None):
    """Yields the rows of a tree as in the flat files."""
    yield {key: value for key, value in node.items() if key != "replies"} | {
        "parent_id": parent, "message_tree_id": "t", "tree_state": "ready_for_export",
    }  # fmt: skip
    for reply in node["replies"]:
        yield from flat(reply, node["message_id"])


ROWS = list(flat(TREE["prompt"]))


def chat(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def contents(comparison):
    """Returns the texts of each conversation, whose roles alternate."""
    for conversation in comparison.conversations:
        assert conversation == chat(*(turn["content"] for turn in conversation))
    return [" ".join(turn["content"] for turn in conversation) for conversation in comparison.conversations]


def edges(comparison):
    return [(edge.winner, edge.loser) for edge in comparison.edges]


def write(path, records):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_each_user_message_of_a_tree_with_ranked_replies_is_a_comparison(tmp_path, name):
    source = write(tmp_path / name, [TREE])
    found, report = read_comparisons(source, ReadOptions())
    assert report.format == "oasst"
    first, second = found
    assert contents(first) == ["q1 a1", "q1 a2", "q1 a3"]
    assert edges(first) == [(1, 0), (0, 2), (1, 2)]  # rank 0 is the best: a2, a1, a3
    assert [edge.weight for edge in first.edges] == pytest.approx([1 / 3] * 3)
    assert contents(second) == ["q1 a1 q2 b1", "q1 a1 q2 b2"]  # b3 has no rank
    assert edges(second) == [(0, 1)]
    assert {comparison.where for comparison in found} == {f"{source}:1"}
    assert dict(report.skipped) == {UNRANKED: 1}  # q3


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_flat_messages_are_the_same_in_any_order(tmp_path, name):
    for rows in (ROWS, ROWS[::-1]):
        source = write(tmp_path / name, rows)
        found, report = read_comparisons(source, ReadOptions())
        assert report.format == "oasst"
        assert sorted(sorted(contents(comparison)) for comparison in found) == [
            ["q1 a1", "q1 a2", "q1 a3"],
            ["q1 a1 q2 b1", "q1 a1 q2 b2"],
        ]
        best = {contents(comparison)[winner] for comparison in found for winner, _ in edges(comparison)[:1]}
        assert best == {"q1 a2", "q1 a1 q2 b1"}
        assert all(sum(edge.weight for edge in comparison.edges) == pytest.approx(1) for comparison in found)
        assert dict(report.skipped) == {UNRANKED: 1}


@pytest.mark.parametrize("records", [[TREE], ROWS])
def test_all_replies_are_scored(records):
    found = list(parse_sources(memory_source(records), ReadOptions(labeled=False)))
    assert [contents(comparison) for comparison in found] == [
        ["q1 a1", "q1 a2", "q1 a3"],
        ["q1 a1 q2 b1", "q1 a1 q2 b2", "q1 a1 q2 b3"],
        ["q1 a2 q3 c1"],
    ]
    assert not any(comparison.edges for comparison in found)


def test_a_message_whose_tree_is_not_complete_is_refused():
    with pytest.raises(InputError, match=r"records:1: parent_id is 'id-q1', and no first message of a tree leads"):
        read_comparisons(memory_source(ROWS[1:]), ReadOptions())
    loop = [row | {"parent_id": "id-a1"} if row["message_id"] == "id-q1" else row for row in ROWS]
    with pytest.raises(InputError, match="parent_id is"):
        read_comparisons(memory_source(loop), ReadOptions())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"message_id": 3}, "message_id is 3; expected a text that no other message has"),
        ({"message_id": "id-q1"}, "message_id is 'id-q1'; expected a text that no other message has"),
        ({"parent_id": ["x"]}, "parent_id is ['x']; expected a message_id, or null"),
        ({"text": " "}, "text of a message is ' '; expected a string"),
        ({"rank": "best"}, "rank is 'best'; expected a finite number"),
    ],
)
def test_wrong_fields_of_flat_messages_are_named(change, reason):
    rows = [row | change if row["message_id"] == "id-a2" else row for row in ROWS]
    items = parse_sources(memory_source(rows), ReadOptions(format="oasst"))
    bad = [item.reason for item in items if isinstance(item, BadRecord) and not item.tied]
    assert any(found.startswith(reason) for found in bad), bad


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "a message of the tree is None; expected an object with text and role"),
        (message("q", "prompter", replies=[{"text": "a"}]), "role of a message is None"),
        (message("q", "prompter") | {"replies": "a"}, "replies of a message is 'a'; expected a list of messages"),
    ],
)
def test_a_malformed_tree_is_one_bad_record(prompt, reason):
    (bad,) = parse_sources(memory_source([{"prompt": prompt}]), ReadOptions(format="oasst"))
    assert bad.reason.startswith(reason)


def test_a_tree_without_replies_has_no_comparison():
    found, report = read_comparisons(memory_source([{"prompt": message("q", "prompter")}]), ReadOptions())
    assert found == []
    assert dict(report.skipped) == {"no message of a user has a reply": 1}


ACTION = {
    "task": "Math_CoT", "dataset": "invented", "id": "7-1", "parent_id": "7-0", "chosen": "a", "rejected": "b",
    "trajectory": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "x"}, {"from": "user", "value": "o"}],
}  # fmt: skip


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
@pytest.mark.parametrize("strings", ["joined", "chat"])
def test_ultrainteract_continues_its_trajectory_by_two_actions(tmp_path, name, strings):
    found, report = read_comparisons(write(tmp_path / name, [ACTION]), ReadOptions(strings=strings))
    assert report.format == "ultrainteract"
    assert found[0].conversations == (chat("q", "x", "o", "a"), chat("q", "x", "o", "b"))
    assert edges(found[0]) == [(0, 1)]
    assert (found[0].edges[0].weight, found[0].subset) == (1, "Math_CoT")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trajectory": None}, "no 'trajectory'; expected a record such as {\"trajectory\""),
        ({"trajectory": [{"from": "user"}]}, "message[0].content of trajectory is None"),
        ({"chosen": None}, "chosen is None; expected a string or a list of messages"),
        ({"rejected": "a"}, "chosen equals rejected"),
    ],
)
def test_malformed_records_of_ultrainteract_are_named(change, reason):
    (bad,) = parse_sources(memory_source([ACTION | change]), ReadOptions(format="ultrainteract"))
    assert bad.reason.startswith(reason)
