"""Formats of published data sets of several responses: Nectar, PPE, RMB, IF-RewardBench."""

import itertools
from collections.abc import Iterator
from typing import Any

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, entries, number, unexpected
from rmjax.data.records.formats.examples import missing
from rmjax.data.records.formats.preferences import (
    between_different,
    candidates,
    compare_ranked,
    compare_sides,
    join_named,
    with_subset,
)
from rmjax.data.records.formats.turns import chat_messages
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Edge, Record


def parse_nectar(where: str, record: Record, options: ReadOptions) -> Comparison:
    """Nectar: `prompt` (a transcript) and `answers`, each with `answer` and `rank` (1 is best)."""
    named = {f"answers[{k}]": answer for k, answer in enumerate(candidates(record, "answers", dict, options))}
    found = join_named(get_prompt(record, options), named, "answer", options)
    ranks = [number(answer.get("rank"), f"{name}.rank") for name, answer in named.items()] if options.labeled else []
    return compare_ranked(where, record, options, found, ranks, False)


def parse_ppe(where: str, record: Record, options: ReadOptions) -> Comparison:
    """PPE's correctness sets: `prompt`, `response_1`, `response_2`, … and `scores`, a boolean or number per response.

    The scores may also be fields: `score_1`, `score_2`, ….
    """
    names = list(itertools.takewhile(lambda name: record.get(name) is not None, _numbered("response")))
    if len(names) < (2 if options.labeled else 1):
        raise missing(f"response_{len(names) + 1}", "ppe")
    prompt = get_prompt(record, options, "question")
    found = [join_conversation(prompt, record.get(name), name, options) for name in names]
    scores = _scores(record, len(names)) if options.labeled else []
    return compare_ranked(where, record, options, found, scores, True)


def _scores(record: Record, count: int) -> list[float]:
    if record.get("scores") is not None:
        values = entries(record.get("scores"), "scores", count, "response")
        given = {f"scores[{k}]": value for k, value in enumerate(values)}
    elif record.get("score_1") is not None:
        given = {name: record.get(name) for name in itertools.islice(_numbered("score"), count)}
    else:
        raise missing("scores", "ppe")
    return [float(value) if isinstance(value, bool) else number(value, name) for name, value in given.items()]


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}_{k}" for k in itertools.count(1))


def parse_rmb(where: str, record: Record, options: ReadOptions) -> Comparison:
    """RMB: `conversation_input` (messages), and `chosen` and `reject`, or `bon_best` and the list `loser_list`.

    Each of these is an object with an `answer`. An edge points from the best one to each other; `category_path` is the
    subset.
    """
    best, others = ("bon_best", "loser_list") if record.get("bon_best") is not None else ("chosen", "reject")
    for name in ("conversation_input", best, others):
        if record.get(name) is None:
            raise missing(name, "rmb")
    prompt = chat_messages(record.get("conversation_input"), "conversation_input")
    value = record.get(others)
    losers = _objects(value, others) if others == "loser_list" else {others: value}
    chosen, rejected = (join_named(prompt, side, "answer", options) for side in ({best: record.get(best)}, losers))
    return with_subset(compare_sides(where, record, options, chosen, rejected), "category_path")


def parse_preference_graph(where: str, record: Record, options: ReadOptions) -> Comparison:
    """IF-RewardBench: `messages`, `responses` with a `response` each, and the edges `preference_graph`.

    An edge has a `chosen` and a `rejected` object, each with the `response_id` of one of the responses: its own
    `response_id`, or else its position, from 0. `instruction_type` is the subset.
    """
    for name in ("messages", "responses", *(["preference_graph"] if options.labeled else [])):
        if record.get(name) is None:
            raise missing(name, "preference_graph")
    named = _objects(record.get("responses"), "responses")
    found = join_named(chat_messages(record.get("messages"), "messages"), named, "response", options)
    edges = []
    if options.labeled:
        ids = [
            str(k if entry.get("response_id") is None else entry["response_id"])
            for k, entry in enumerate(named.values())
        ]
        for name, edge in _objects(record.get("preference_graph"), "preference_graph").items():
            ends = [_position(edge.get(side), ids, f"{name}.{side}") for side in ("chosen", "rejected")]
            if ends[0] == ends[1]:
                raise BadField(f"{name} prefers a response to itself; remove this edge")
            edges.append(Edge(*ends))
    comparison = Comparison(found, True, between_different(found, edges), None, where, record)
    return with_subset(comparison, "instruction_type")


def _position(side: Any, ids: list[str], name: str) -> int:
    """Returns the index of the response that one side of an edge names."""
    given = side.get("response_id") if isinstance(side, dict) else None
    if isinstance(given, bool) or not isinstance(given, int | str) or str(given) not in ids:
        raise unexpected(given, f"{name}.response_id", f"the id of a response: {', '.join(ids)}")
    return ids.index(str(given))


def _objects(value: Any, name: str) -> dict[str, Record]:
    """Returns {its name: object} of a list of at least one object."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise unexpected(value, name, "a list of objects")
    return {f"{name}[{k}]": entry for k, entry in enumerate(value)}
