"""Signatures of comparisons, what is a duplicate of what, and the report."""

import dataclasses

import numpy as np
import pytest

from rmjax.data.curation.duplicates import (
    match,
    near_duplicates,
    same_conversations,
    same_prompt,
    signatures,
    similar_prompt,
    split_prompt,
)
from rmjax.data.curation.report import report_duplicates
from rmjax.data.curation.selection import read_reference
from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import BadRecord, memory_source

QUESTION = (
    "Which of the many rivers of this large continent is the longest one, and through which countries does it flow?"
)
LONG = "It is the river that flows to the north through eleven countries before it ends in a delta of the inland sea."
SHORT = "The one in the south, although nobody has measured all of its sources and side arms with the care that is due."


def read(*records, **options):
    items = list(parse_sources([memory_source(records)], ReadOptions(**options)))
    assert not [item for item in items if isinstance(item, BadRecord)]
    return items


def pair(prompt, chosen, rejected, **fields):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | fields


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("record", "prompt", "responses"),
    [
        (pair("Hi", " yes", " yet"), ["Hi"], [" yes", " yet"]),
        (pair(user("Hi"), assistant("a"), assistant("b")), ["Hi"], ["a", "b"]),
        ({"chosen": user("Hi") + assistant("a"), "rejected": user("Hi") + assistant("b")}, ["Hi"], ["a", "b"]),
        (
            pair([{"role": "system", "content": "Be brief."}, *user("Hi")], assistant("a"), assistant("b")),
            ["Hi"],
            ["a", "b"],
        ),
        (pair(user("Hi") + assistant("x") + user("y"), assistant("a"), assistant("b")), ["Hi", "x", "y"], ["a", "b"]),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}, ["Hi"], ["a", "b"]),
        ({"prompt": "Hi", "response": " a", "labels": {"x": 1}}, ["Hi"], [" a"]),
        ({"prompt": user("Hi"), "response": assistant("a"), "labels": {"x": 1}}, ["Hi"], ["a"]),
        ({"messages": user("Hi") + assistant("a")}, ["Hi"], ["a"]),
        ({"text": "Hi a"}, [""], ["Hi a"]),
        ({"prompt": "Hi", "responses": [" a", " b", " c"], "ranks": [1, 2, 3]}, ["Hi"], [" a", " b", " c"]),
        ({"prompt": "Hi", "completions": ["s", "t"], "labels": [1, 0]}, ["Hi"], ["\ns\nt"]),
        # Without a field of the prompt: whole words that the responses have in common.
        ({"chosen": "Say it: yes", "rejected": "Say it: yet"}, ["Say it: "], ["yes", "yet"]),
    ],
)
def test_prompt_and_responses(record, prompt, responses):
    (item,) = read(record, labeled="chosen" not in record or True)
    assert split_prompt(item) == (prompt, responses)


def test_the_prompt_is_found_in_any_form():
    records = [
        pair(QUESTION, f" {LONG}", f" {SHORT}"),
        pair(user(QUESTION), assistant(LONG), assistant(SHORT)),
        {
            "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {LONG}",
            "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {SHORT}",
        },
        pair([{"role": "system", "content": "Be brief."}, *user(QUESTION.upper())], assistant("a"), assistant("b")),
    ]
    found = signatures([item for record in records for item in read(record)])
    assert same_prompt(found).tolist() == [0, 0, 0, 0]
    assert same_conversations(found).tolist() == [0, 1, 2, 3]
    assert near_duplicates(found, 0.7).tolist() == [0, 0, 0, 3]


def test_kinds_of_duplicates():
    records = [
        pair(user(QUESTION), assistant(LONG), assistant(SHORT)),
        pair(user(QUESTION), assistant(SHORT), assistant(LONG)),  # 1: the opposite preference
        pair(user(QUESTION), assistant(LONG), assistant("Another answer")),  # 2: the same prompt only
        pair(user(QUESTION.replace("many", "several")), assistant(LONG + " Really."), assistant(SHORT)),  # 3: similar
        pair(user("Another question"), assistant(LONG), assistant(SHORT)),  # 4: the same responses only
        pair(user(QUESTION), assistant(LONG), assistant(SHORT)),  # 5: the same
        pair(user(QUESTION), assistant(LONG), assistant(SHORT), margin=2),  # 6: the same, another margin
    ]
    comparisons = read(*records)
    found = signatures(comparisons)
    assert same_conversations(found).tolist() == [0, 0, 2, 3, 4, 0, 0]
    assert (found["labels"] != found["labels"][same_conversations(found)]).tolist() == [False, True] + [False] * 5
    assert near_duplicates(found, 0.7).tolist() == [0, 0, 2, 0, 4, 0, 0]
    assert same_prompt(found).tolist() == [0, 0, 0, 3, 4, 0, 0]
    assert similar_prompt(found, 0.7).tolist() == [0, 0, 0, 0, 4, 0, 0]
    report = report_duplicates(comparisons, found, 0.7)
    assert (report.comparisons, report.same, report.other_labels, report.near) == (7, 3, 1, 1)
    assert (report.prompts, report.similar_prompts) == (3, 1)
    (example,) = report.examples
    assert example.places == ("records:4", "records:1")
    assert example.texts == (QUESTION.replace("many", "several")[:100] + "…", QUESTION[:100] + "…")
    assert 0.7 <= example.similarity < 1
    assert str(report).splitlines()[:2] == [
        "duplicates: 3 comparisons with the same conversations as another one, 1 of them with other labels; 1 near "
        "duplicate; data.duplicates = drop would leave out 3, drop_near 4",
        "prompts: 3 different, 1 of them similar to an earlier one (Jaccard similarity of word bigrams estimated as at "
        "least 0.7)",
    ]


def test_labels_of_attributes_and_ties_are_labels():
    rated = lambda value: {"prompt": "p", "response": " r", "labels": {"x": value}}
    found = signatures(read(rated(1), rated(1), rated(2)))
    assert same_conversations(found).tolist() == [0, 0, 0]
    assert found["labels"][0] == found["labels"][1] != found["labels"][2]
    tied = lambda order: {"prompt": "p", "responses": order, "scores": [1, 1]}
    found = signatures(read(tied([" a", " b"]), tied([" b", " a"]), ties="half"))
    assert found["labels"][0] == found["labels"][1]


def test_comparisons_without_a_prompt_are_compared_by_their_responses():
    records = [{"text": LONG}, {"text": LONG.upper()}, {"text": SHORT}, {"text": "!!!"}, {"text": "???"}]
    found = signatures(read(*records, labeled=False))
    assert found["prompt"].tolist() == [0] * 5
    assert same_prompt(found).tolist() == similar_prompt(found, 0.7).tolist() == [0, 1, 2, 3, 4]
    assert near_duplicates(found, 0.7).tolist() == [0, 0, 2, 3, 4]


def test_long_shared_prompts_do_not_make_comparisons_near_duplicates():
    document = " ".join(f"word{i}" for i in range(500))
    records = [pair(f"Summarize: {document}", f" {LONG} {i}", f" It is {i}, not {i + 1}.") for i in range(9)]
    found = signatures(read(*records))
    assert same_prompt(found).tolist() == [0] * 9
    records = [pair(f"Summarize: {document}", f" {chosen}", " no") for chosen in (LONG, SHORT, "yes")]
    assert near_duplicates(signatures(read(*records)), 0.7).tolist() == [0, 1, 2]


def test_matches_with_other_data():
    others = read(
        pair(user(QUESTION), assistant("x"), assistant("y")),
        pair(user("What else?"), assistant("a"), assistant("b")),
        pair(user("?"), assistant("a"), assistant("b")),
    )
    own = read(
        pair(user(QUESTION.lower()), assistant(LONG), assistant(SHORT)),
        pair(user(QUESTION.replace("many", "several")), assistant(LONG), assistant(SHORT)),
        pair(user("What else?"), assistant("b"), assistant("a")),
        pair(user("And this?"), assistant("a"), assistant("b")),
        pair(user("!"), assistant("a"), assistant("b")),
    )
    found = match(signatures(own), signatures(others), 0.7)
    assert found.conversations.tolist() == [-1, -1, 1, -1, -1]
    assert found.prompt.tolist() == [0, -1, 1, -1, -1]
    assert found.similar_prompt.tolist() == [0, 0, 1, -1, -1]
    assert match(signatures(own), signatures(others), 1.0).similar_prompt.tolist() == [0, -1, 1, -1, -1]


def test_report_of_overlap(tmp_path):
    own = read(
        pair(user(QUESTION.lower()), assistant(LONG), assistant(SHORT)),
        pair(user(QUESTION.replace("many", "several")), assistant(LONG), assistant(SHORT)),
        pair(user("What else?"), assistant("b"), assistant("a")),
    )
    sets = [
        memory_source(
            [pair(QUESTION, " x", " y"), {"prompt": "Not there", "chosen": "a", "rejected": "b"}], location="bench"
        ),
        memory_source([{"prompt": "What else?"}, {"prompt": user("what else")}], location="prompts"),
    ]
    reference = read_reference(sets, ReadOptions())
    report = report_duplicates(own, signatures(own), 0.7, reference)
    bench, prompts = report.overlaps
    assert dataclasses.replace(bench, examples=[]) == type(bench)("bench", 2, 2, 0, 1, 1, [])
    assert bench.examples[0].places == ("records:2", "bench:1")
    assert prompts == type(bench)("prompts", 2, 1, 0, 1, 0, [])
    assert prompts.lines() == [
        "overlap with prompts (2 comparisons, 1 prompt): 0 comparisons with the same conversations, 1 with the same "
        "prompt, 0 with a similar prompt; data.exclude would leave out 1"
    ]


def test_signatures_of_parts_are_those_of_the_whole(monkeypatch):
    comparisons = read(*[pair(f"{QUESTION} {i % 7}", f" {LONG}{i}", f" {SHORT}") for i in range(20)])
    whole = signatures(comparisons)
    np.testing.assert_array_equal(np.concatenate([signatures(comparisons[:9]), signatures(comparisons[9:])]), whole)
    monkeypatch.setattr("rmjax.data.curation.duplicates._CHUNK", 3)
    np.testing.assert_array_equal(signatures(comparisons), whole)
    hashes = signatures(comparisons, similar=False)
    np.testing.assert_array_equal(hashes["conversations"], whole["conversations"])
    assert not hashes["prompt"].any()


def test_no_comparisons():
    found = signatures([])
    assert near_duplicates(found, 0.7).tolist() == same_conversations(found).tolist() == []
    assert match(found, signatures(read(pair("p", " a", " b"))), 0.7).prompt.tolist() == []
    assert match(signatures(read(pair("p", " a", " b"))), found, 0.7).prompt.tolist() == [-1]
