"""One function a format: from a record to a comparison; steps of processes are read in `rmjax.data.records.process`.

Each takes the record, its place, and the options, and returns a comparison; each raises BadField for a record that
cannot be used. Where `options.labelled` is False, for scoring, what is known of the responses is not asked for.

Axis letters: K responses, A attributes, R readouts.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmjax.data.records.conversations import BadField, conversation, messages, number, numbers, text
from rmjax.data.schema import Comparison, Edge, Message

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_ALSO_PROMPTS = ("question", "instruction", "input", "context", "history", "query")  # what data calls its prompts
# The order of NeMo-Aligner's nine labels (its OASST and HelpSteer recipes).
NEMO = ("quality", "toxicity", "humor", "creativity", *HELPSTEER)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How records are read.

    Attributes:
      format: `auto` or one of `formats.FORMATS`.
      strings: `joined` takes prompt and response strings as one text, as they are; `chat` makes them messages.
      columns: fields to rename, `old=new` each.
      ties: `drop` leaves ties between responses out; `half` keeps them as edges with target 0.5.
      missing_label: the number that means that a label is missing.
      preference_label: NeMo-Aligner's regression with preference: the label whose sign picks the winner (negative: the
        first) and whose size is the margin.
      step_separator: between the steps of a process record.
      step_labels: what 0 means at a process record's step: `binary` wrong, `ternary` neutral beside -1 and 1; `auto`
        tells by whether any label of the source is -1.
      labelled: False, for scoring: labels are not asked for, and equal responses are fine.
    """

    format: str = "auto"
    strings: str = "joined"
    columns: tuple[str, ...] = ()
    ties: str = "drop"
    missing_label: float = -100.0
    preference_label: int = 0
    step_separator: str = "\n"
    step_labels: str = "auto"
    labelled: bool = True


def pairs(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """`prompt`, `chosen`, `rejected`, and optional `margin`, `strength`, `weight`, `probability`."""
    for key in ("chosen", "rejected"):
        if key not in record:
            raise BadField(f"no {key!r}; a pair needs chosen and rejected")
    both = [_conversation(record, key, options) for key in ("chosen", "rejected")]
    if type(both[0]) is not type(both[1]):
        raise BadField("chosen and rejected are of different types; both must be strings or both lists of messages")
    if both[0] == both[1] and options.labelled:
        raise BadField("chosen equals rejected; such a pair says nothing: remove it")
    edges = (_pair_edge(record),) if options.labelled else ()
    return Comparison(tuple(both), True, edges, None, where, record)


def _pair_edge(record: dict[str, Any]) -> Edge:
    given = {
        key: number(record[key], key) for key in ("margin", "strength", "probability") if record.get(key) is not None
    }
    if given.get("strength", 1.0) < 0:
        raise BadField(f"strength is {given['strength']}; expected 0 or more: swap chosen and rejected")
    if not 0 <= given.get("probability", 1.0) <= 1:
        raise BadField(f"probability is {given['probability']}; expected 0 to 1, that chosen is the better one")
    target = given.pop("probability", 1.0)
    if target >= 0.5:
        return Edge(0, 1, target=target, **given)
    return Edge(1, 0, -given.get("margin", 0.0), strength=given.get("strength", 1.0), target=1 - target)


def preference_strength(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """HelpSteer2-Preference: `prompt`, `response_1`, `response_2`, `preference_strength` -3..3 (below 0: the first)."""
    both = [_conversation(record, key, options) for key in ("response_1", "response_2")]
    edges: tuple[Edge, ...] = ()
    if options.labelled:
        if both[0] == both[1]:
            raise BadField("response_1 equals response_2; such a pair says nothing: remove it")
        strength = number(record.get("preference_strength"), "preference_strength")
        if strength:
            edges = (signed_edge(strength),)
        elif options.ties == "half":
            edges = (Edge(0, 1, target=0.5),)
    return Comparison(tuple(both), True, edges, None, where, record)


def signed_edge(preference: float) -> Edge:
    """The edge of a signed preference: below zero response 0 wins, else response 1, by the size."""
    winner = int(preference >= 0)
    return Edge(winner, 1 - winner, abs(preference), strength=abs(preference))


def ranked_edges(values: Sequence[float], higher: bool, options: ReadOptions) -> tuple[Edge, ...]:
    """Edges between all responses that differ, each of weight 1 / (their number): the comparison counts once.

    The margin is the difference of the values. Ties are left out, or edges with target 0.5: see `ReadOptions.ties`.

    Args:
      values: of K responses.
      higher: whether higher values are better (scores) or lower ones (ranks).
    """
    found = []
    for first, second in itertools.combinations(range(len(values)), 2):
        lead = (values[first] - values[second]) * (1 if higher else -1)
        if lead:
            winner, loser = (first, second) if lead > 0 else (second, first)
            found.append(Edge(winner, loser, abs(lead)))
        elif options.ties == "half":
            found.append(Edge(first, second, target=0.5))
    return tuple(dataclasses.replace(edge, weight=1 / len(found)) for edge in found)


def kwise(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """`prompt`, `responses`, and `ranks` (1 is best) or `scores` (higher is better); ties allowed."""
    responses = record.get("responses")
    if not isinstance(responses, list) or not responses:
        raise BadField(f"responses is {responses!r:.60}; expected a list", "responses is no list")
    _check_several(responses, "responses", options)
    prompt, chat = prompt_of(record, options), options.strings == "chat"
    found = [conversation(prompt, response, f"responses[{k}]", chat) for k, response in enumerate(responses)]
    edges: tuple[Edge, ...] = ()
    if options.labelled:
        key = "ranks" if record.get("ranks") is not None else "scores"
        edges = ranked_edges(numbers(record.get(key), key, len(found)), key == "scores", options)
    return Comparison(tuple(found), True, _separate(found, edges), None, where, record)


def completions(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """UltraFeedback's `instruction` and `completions` with ratings; NeMo-RL's `context` and `completions` with `rank`.

    UltraFeedback's rating is `overall_score`, else the mean of the `Rating` of its `annotations`. NeMo-RL's rank 0 is
    the best.
    """
    entries = record.get("completions")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise BadField(
            f"completions is {entries!r:.60}; expected a list of objects", "completions is no list of objects"
        )
    _check_several(entries, "completions", options)
    ranked = "context" in record
    key, prompt = "completion" if ranked else "response", prompt_of(record, options, "context", "instruction")
    chat = options.strings == "chat"
    found = [conversation(prompt, entry.get(key), f"completions[{k}].{key}", chat) for k, entry in enumerate(entries)]
    edges: tuple[Edge, ...] = ()
    if options.labelled:
        values = [
            number(entry.get("rank"), f"completions[{k}].rank") if ranked else _rating(entry, k)
            for k, entry in enumerate(entries)
        ]
        edges = ranked_edges(values, not ranked, options)
    return Comparison(tuple(found), True, _separate(found, edges), None, where, record)


def _check_several(entries: list[Any], name: str, options: ReadOptions) -> None:
    if options.labelled and len(entries) < 2:
        raise BadField(f"{name} has one entry; expected two or more to compare: remove the record")


def _rating(entry: dict[str, Any], k: int) -> float:
    if entry.get("overall_score") is not None:
        return number(entry["overall_score"], f"completions[{k}].overall_score")
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict) or not annotations:
        raise BadField(
            f"completions[{k}] has neither overall_score nor annotations; expected a rating",
            "a completion has no rating",
        )
    ratings = []
    for name, annotation in annotations.items():
        value = annotation.get("Rating") if isinstance(annotation, dict) else None
        if value not in (None, "N/A"):
            ratings.append(number(value, f"completions[{k}].annotations.{name}.Rating"))
    if not ratings:
        raise BadField(f"completions[{k}].annotations hold no Rating", "a completion has no rating")
    return sum(ratings) / len(ratings)


def _separate(found: Sequence[Any], edges: tuple[Edge, ...]) -> tuple[Edge, ...]:
    """The edges between different responses, their weights scaled up to what they were in all."""
    kept = [edge for edge in edges if found[edge.winner] != found[edge.loser]]
    scale = sum(edge.weight for edge in edges) / max(sum(edge.weight for edge in kept), 1e-30)
    return tuple(dataclasses.replace(edge, weight=edge.weight * scale) for edge in kept)


def regression(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """`prompt`, `response`, and `labels` {attribute: value}, or HelpSteer's columns; a missing value is null."""
    found = _conversation(record, "response", options)
    start = len(found) - len(record["response"]) if isinstance(found, str) else 0
    if not options.labelled:
        return Comparison((found,), True, (), None, where, record, start=start)
    given = record.get("labels")
    if given is None:
        given = {name: record[name] for name in HELPSTEER if name in record}
    if not isinstance(given, dict) or not given:
        raise BadField(
            f"labels is {given!r:.60}; expected an object attribute: value, or HelpSteer's columns",
            "labels is no object",
        )
    names = tuple(sorted(given)) if record.get("labels") is not None else tuple(given)
    values = [np.nan if given[name] is None else number(given[name], f"labels.{name}") for name in names]
    labels = _labels([values], options)
    return Comparison((found,), True, (), labels, where, record, attributes=names, start=start)


def nemo_label(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """NeMo-Aligner's regression: `text` and `label`, a list of numbers of which -100 means missing."""
    found = text(record.get("text"), "text")
    if not options.labelled:
        return Comparison((found,), False, (), None, where, record)
    label = record.get("label")
    if not isinstance(label, list) or not label:
        raise BadField(f"label is {label!r:.60}; expected a list of numbers", "label is no list of numbers")
    values = [number(value, f"label[{i}]") for i, value in enumerate(label)]
    names = NEMO if len(values) == len(NEMO) else tuple(f"label_{i}" for i in range(len(values)))
    return Comparison((found,), False, (), _labels([values], options), where, record, attributes=names)


def _labels(values: list[list[float]], options: ReadOptions) -> np.ndarray:
    labels = np.array(values, np.float32)
    labels[labels == np.float32(options.missing_label)] = np.nan
    if np.isnan(labels).all():
        raise BadField(
            f"every label is missing (null or {options.missing_label:g}); remove the record, or label it",
            "every label is missing",
        )
    return labels


def _conversation(record: dict[str, Any], key: str, options: ReadOptions) -> str | list[Message]:
    return conversation(prompt_of(record, options), record.get(key), key, options.strings == "chat")


def prompt_of(record: dict[str, Any], options: ReadOptions, *names: str) -> Any:
    """Returns what a record's responses answer: its `prompt`, or the first of `names` that it has; None for none.

    Raises:
      BadField: it would be lost, as it has another name, or something beside it would.
    """
    prompt = next((record[name] for name in ("prompt", *names) if record.get(name) is not None), None)
    if prompt is None and (other := next((name for name in _ALSO_PROMPTS if record.get(name)), "")):
        raise BadField(
            f"there is no prompt, but {other!r}; if that is the prompt, rename it (data.columns = "
            f"'{other}=prompt'), else rename it to anything unknown"
        )
    if record.get("tools"):
        raise BadField(
            "tools is given, and would not be rendered; put the tools into a system message as the model "
            "expects them, and rename or remove the field"
        )
    # The name is also that of an identifier, as in summeval: which system wrote the summary.
    if len(str(record.get("system") or "").split()) > 1:
        raise BadField(
            "system holds a text; if it is a system message, rename it (data.columns = "
            "'system=system_prompt'), else rename it to anything unknown"
        )
    if not (system := record.get("system_prompt")):
        return prompt
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and options.strings == "chat" else prompt
    if not isinstance(asked, list):
        raise BadField(
            "system_prompt is given beside strings that are joined as they are, or without a prompt; set "
            "data.strings = chat, or put it into the prompt and rename or remove the field"
        )
    return [{"role": "system", "content": text(system, "system_prompt")}, *asked]


def plain_text(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """`text`, tokenised as it is."""
    return Comparison((text(record.get("text"), "text"),), False, (), None, where, record)


def plain_messages(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """`messages`: one conversation."""
    return Comparison((messages(record.get("messages"), "messages"),), True, (), None, where, record)
