"""Formats of preferences between K responses: pairs and rankings."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, entries, number, unexpected
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Conversation, Edge, Record


def parse_pair(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`prompt`, `chosen`, `rejected`, and optional `margin`, `strength`, `weight`, `probability`."""
    for key in ("chosen", "rejected"):
        if key not in record:
            raise BadField(f"no {key!r}; a pair needs chosen and rejected")
    conversations = _two_conversations(record, "chosen", "rejected", options)
    if type(conversations[0]) is not type(conversations[1]):
        raise BadField("chosen and rejected are of different types; both must be strings or both lists of messages")
    if options.labeled and conversations[0] == conversations[1]:
        raise BadField("chosen equals rejected; such a pair has no preference: remove it")
    edges = (_pair_edge(record),) if options.labeled else ()
    return Comparison(conversations, True, edges, None, where, record)


def _two_conversations(record: Record, first: str, second: str, options: ReadOptions) -> tuple[Conversation, ...]:
    prompt = get_prompt(record, options)
    return tuple(join_conversation(prompt, record.get(key), key, options) for key in (first, second))


def _pair_edge(record: Record) -> Edge:
    names = ("margin", "strength", "probability")
    given = {name: number(record[name], name) for name in names if record.get(name) is not None}
    if given.get("strength", 1.0) < 0:
        raise BadField(f"strength is {given['strength']}; expected 0 or more: swap chosen and rejected")
    target = given.pop("probability", 1.0)
    if not 0 <= target <= 1:
        raise BadField(f"probability is {target}; expected 0 to 1, that chosen is the better one")
    if target >= 0.5:
        return Edge(0, 1, target=target, **given)
    return Edge(1, 0, -given.get("margin", 0.0), strength=given.get("strength", 1.0), target=1 - target)


def parse_preference_strength(where: str, record: Record, options: ReadOptions) -> Comparison:
    """HelpSteer2-Preference: `prompt`, `response_1`, `response_2`, `preference_strength` -3..3 (negative: first)."""
    conversations = _two_conversations(record, "response_1", "response_2", options)
    edges: tuple[Edge, ...] = ()
    if options.labeled:
        if conversations[0] == conversations[1]:
            raise BadField("response_1 equals response_2; such a pair has no preference: remove it")
        if strength := number(record.get("preference_strength"), "preference_strength"):
            edges = (signed_edge(strength),)
        elif options.ties == "half":
            edges = (Edge(0, 1, target=0.5),)
    return Comparison(conversations, True, edges, None, where, record)


def signed_edge(preference: float) -> Edge:
    """Returns the edge of a signed preference: response 0 wins if it is negative, else response 1, by its size."""
    winner = int(preference >= 0)
    return Edge(winner, 1 - winner, abs(preference), strength=abs(preference))


def ranked_edges(values: Sequence[float], higher: bool, options: ReadOptions) -> tuple[Edge, ...]:
    """Returns an edge per pair of different values, of weight 1 / (number of edges) and margin |difference|.

    Ties are left out, or are edges with target 0.5: see `ReadOptions.ties`.

    Args:
      values: [K], one per response.
      higher: whether higher values are better (scores) or lower ones (ranks).

    >>> [(edge.winner, edge.loser, edge.margin, edge.weight) for edge in ranked_edges([2, 1, 2], False, ReadOptions())]
    [(1, 0, 1, 0.5), (1, 2, 1, 0.5)]
    """
    edges = []
    for first, second in itertools.combinations(range(len(values)), 2):
        lead = (values[first] - values[second]) * (1 if higher else -1)
        if lead:
            winner, loser = (first, second) if lead > 0 else (second, first)
            edges.append(Edge(winner, loser, abs(lead)))
        elif options.ties == "half":
            edges.append(Edge(first, second, target=0.5))
    return tuple(dataclasses.replace(edge, weight=1 / len(edges)) for edge in edges)


def parse_kwise(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`prompt`, `responses`, and `ranks` (1 is best) or `scores` (higher is better); ties allowed."""
    responses = _candidates(record, "responses", object, options)
    prompt = get_prompt(record, options)
    found = [join_conversation(prompt, entry, f"responses[{k}]", options) for k, entry in enumerate(responses)]
    key = "ranks" if record.get("ranks") is not None else "scores"
    given = entries(record.get(key), key, len(found), "response") if options.labeled else []
    values = [number(value, f"{key}[{k}]") for k, value in enumerate(given)]
    edges = _between_different(found, ranked_edges(values, key == "scores", options))
    return Comparison(tuple(found), True, edges, None, where, record)


def parse_completions(where: str, record: Record, options: ReadOptions) -> Comparison:
    """UltraFeedback's `instruction` and `completions` with ratings; NeMo-RL's `context` and `completions` with `rank`.

    The rating is `overall_score`, else the mean of the `Rating` of the `annotations`. Rank 0 is the best.
    """
    completions = _candidates(record, "completions", dict, options)
    prompt, ranked = get_prompt(record, options, "context", "instruction"), "context" in record
    key = "completion" if ranked else "response"
    named = {f"completions[{k}]": completion for k, completion in enumerate(completions)}
    found = [join_conversation(prompt, entry.get(key), f"{name}.{key}", options) for name, entry in named.items()]
    value_of = lambda name, entry: number(entry.get("rank"), f"{name}.rank") if ranked else _rating(entry, name)
    values = [value_of(name, entry) for name, entry in named.items()] if options.labeled else []
    edges = _between_different(found, ranked_edges(values, not ranked, options))
    return Comparison(tuple(found), True, edges, None, where, record)


def _candidates(record: Record, name: str, kind: type, options: ReadOptions) -> list[Any]:
    """Returns the list of responses; at least two for labeled data."""
    found = record.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(entry, kind) for entry in found):
        raise unexpected(found, name, "a list of objects" if kind is dict else "a list")
    if options.labeled and len(found) < 2:
        raise BadField(f"{name} has one entry; expected two or more to compare: remove the record")
    return found


def _rating(completion: dict[str, Any], name: str) -> float:
    if completion.get("overall_score") is not None:
        return number(completion["overall_score"], f"{name}.overall_score")
    annotations = completion.get("annotations")
    ratings = [
        number(part["Rating"], f"{name}.annotations.{key}.Rating")
        for key, part in (annotations.items() if isinstance(annotations, dict) else ())
        if isinstance(part, dict) and part.get("Rating") not in (None, "N/A")
    ]
    if not ratings:
        raise BadField(f"{name} has no rating; expected overall_score, or annotations with a Rating")
    return sum(ratings) / len(ratings)


def _between_different(conversations: Sequence[Conversation], edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Returns the edges between different conversations, with weights scaled to the sum over all edges."""
    kept = [edge for edge in edges if conversations[edge.winner] != conversations[edge.loser]]
    scale = sum(edge.weight for edge in edges) / max(sum(edge.weight for edge in kept), 1e-30)
    return tuple(dataclasses.replace(edge, weight=edge.weight * scale) for edge in kept)
