"""Formats of preferences between K responses: pairs and rankings, and the edges that the other formats use too."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, entries, number, unexpected
from rmjax.data.records.formats.examples import missing
from rmjax.data.records.formats.turns import as_response
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Conversation, Edge, Record


def parse_pair(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`prompt`, `chosen`, `rejected`, and optional `margin`, `strength`, `weight`, `probability`.

    `chosen` and `rejected` are each a response, a string or messages, or a list of responses, as in RewardBench 2 and
    RM-Bench, whose `domain` is the subset. Chosen responses come first.
    """
    for key in ("chosen", "rejected"):
        if key not in record:
            raise missing(key, "pairs")
    prompt = get_prompt(record, options)
    chosen, rejected = (join_responses(prompt, record.get(key), key, options) for key in ("chosen", "rejected"))
    comparison = compare_sides(where, record, options, chosen, rejected)
    return with_subset(comparison, "domain") if len(comparison.conversations) > 2 else comparison


def join_responses(prompt: Any, value: Any, name: str, options: ReadOptions) -> list[Conversation]:
    """Returns the whole conversations of one response, a string or messages, or of each of a list of responses."""
    several = isinstance(value, list) and any(isinstance(entry, str | list) for entry in value)
    named = {f"{name}[{i}]": entry for i, entry in enumerate(value)} if several else {name: value}
    return [join_conversation(prompt, as_response(entry), place, options) for place, entry in named.items()]


def compare_sides(
    where: str, record: Record, options: ReadOptions, chosen: Sequence[Conversation], rejected: Sequence[Conversation]
) -> Comparison:
    """Returns the comparison of a record's chosen and rejected conversations, with an edge from each to each other.

    Margin, strength and probability of the record are those of each edge; the weights sum to 1. Raises BadField if the
    conversations are of different types, or all pairs are equal.
    """
    conversations = (*chosen, *rejected)
    if len({type(conversation) for conversation in conversations}) > 1:
        raise BadField("chosen and rejected are of different types; both must be strings or both lists of messages")
    edges: tuple[Edge, ...] = ()
    if options.labeled:
        edge, middle = _pair_edge(record), len(chosen)
        pairs = itertools.product(range(middle), range(middle, len(conversations)))
        edges = between_different(
            conversations, [dataclasses.replace(edge, winner=p[edge.winner], loser=p[edge.loser]) for p in pairs]
        )
        if not edges:
            raise BadField("chosen equals rejected; such a pair has no preference: remove it")
    return Comparison(conversations, True, edges, None, where, record)


def with_subset(comparison: Comparison, field: str) -> Comparison:
    """Returns the comparison with the subset that its record names in a field; without a text there, as it is."""
    subset = comparison.record.get(field)
    return dataclasses.replace(comparison, subset=subset) if isinstance(subset, str) else comparison


def compare_two(
    where: str,
    record: Record,
    options: ReadOptions,
    conversations: Sequence[Conversation],
    label: Callable[[], Edge | None],
) -> Comparison:
    """Returns the comparison of two conversations; `label` returns their edge, or None if they are tied."""
    edges: tuple[Edge, ...] = ()
    if options.labeled:
        edge = label() or (Edge(0, 1, target=0.5) if options.ties == "half" else None)
        edges = between_different(conversations, [edge] if edge else [])
    return Comparison(tuple(conversations), True, edges, None, where, record)


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
    prompt = get_prompt(record, options)
    conversations = [join_conversation(prompt, record.get(key), key, options) for key in ("response_1", "response_2")]
    if options.labeled and conversations[0] == conversations[1]:
        raise BadField("response_1 equals response_2; such a pair has no preference: remove it")
    label = lambda: signed_label(record, "preference_strength")
    return compare_two(where, record, options, conversations, label)


def signed_label(record: Record, name: str) -> Edge | None:
    """Returns the edge of a field that holds a signed preference (see `signed_edge`); None if it is 0."""
    preference = number(record.get(name), name)
    return signed_edge(preference) if preference else None


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
    responses = candidates(record, "responses", object, options)
    prompt = get_prompt(record, options)
    found = [join_conversation(prompt, entry, f"responses[{k}]", options) for k, entry in enumerate(responses)]
    key = "ranks" if record.get("ranks") is not None else "scores"
    if options.labeled and record.get(key) is None:
        raise missing("ranks", "kwise")
    given = entries(record.get(key), key, len(found), "response") if options.labeled else []
    values = [number(value, f"{key}[{k}]") for k, value in enumerate(given)]
    return compare_ranked(where, record, options, found, values, key == "scores")


def parse_completions(where: str, record: Record, options: ReadOptions) -> Comparison:
    """UltraFeedback's `instruction` and `completions` with ratings; NeMo-RL's `context` and `completions` with `rank`.

    The rating is `overall_score`, else the mean of the `Rating` of the `annotations`. Rank 0 is the best.
    """
    completions = candidates(record, "completions", dict, options)
    prompt, ranked = get_prompt(record, options, "context", "instruction"), "context" in record
    key = "completion" if ranked else "response"
    named = {f"completions[{k}]": completion for k, completion in enumerate(completions)}
    found = join_named(prompt, named, key, options)
    value_of = lambda name, entry: number(entry.get("rank"), f"{name}.rank") if ranked else _rating(entry, name)
    values = [value_of(name, entry) for name, entry in named.items()] if options.labeled else []
    return compare_ranked(where, record, options, found, values, not ranked)


def compare_ranked(
    where: str,
    record: Record,
    options: ReadOptions,
    conversations: Sequence[Conversation],
    values: Sequence[float],
    higher: bool,
) -> Comparison:
    """Returns the comparison of K conversations by the values of `ranked_edges`; without values it has no edge."""
    edges = between_different(conversations, ranked_edges(values, higher, options))
    return Comparison(tuple(conversations), True, edges, None, where, record)


def join_named(prompt: Any, named: dict[str, Any], key: str, options: ReadOptions) -> tuple[Conversation, ...]:
    """Returns the conversations of responses, {name: object with the text under `key`}."""
    for name, entry in named.items():
        if not isinstance(entry, dict):
            raise unexpected(entry, name, f"an object with {key!r}")
    return tuple(join_conversation(prompt, entry.get(key), f"{name}.{key}", options) for name, entry in named.items())


def candidates(record: Record, name: str, kind: type, options: ReadOptions) -> list[Any]:
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


def between_different(conversations: Sequence[Conversation], edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Returns the edges between different conversations, each with the weight 1 / (number of these edges)."""
    kept = [edge for edge in edges if conversations[edge.winner] != conversations[edge.loser]]
    return tuple(dataclasses.replace(edge, weight=1 / len(kept)) for edge in kept)
