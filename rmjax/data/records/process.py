"""The formats of process supervision: a prompt, the steps of one response, and a label of each step."""

import itertools
import re
from typing import Any

import numpy as np

from rmjax.data.records.conversations import BadField, conversation, number, text, texts
from rmjax.data.records.parsers import ReadOptions, prompt_of
from rmjax.data.schema import Comparison

_MARK = "ки"  # closes a step of Math-Shepherd
_FIRST_STEP = re.compile("[Ss]tep 1:")
_NOT_JUDGED = -100  # a step's label in TRL's and NeMo-Aligner's data


def process(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """TRL's stepwise form: `prompt`, `completions` (steps), `labels` (bool, 0 and 1, or -1, 0, 1; -100: not judged).

    What 0 means is said by `options.step_labels`, or by the source as a whole (`formats.normalize_step_labels`).
    """
    steps = texts(record.get("completions"), "completions")
    labels = None
    if options.labelled:
        given = record.get("labels")
        if not isinstance(given, list) or len(given) != len(steps):
            size = len(given) if isinstance(given, list) else repr(given)[:60]
            raise BadField(
                f"labels has {size} entries; expected {len(steps)}, one a step",
                "labels has another number of entries than there are steps",
            )
        labels = [_judgement(label, f"labels[{i}]") for i, label in enumerate(given)]
        if options.step_labels == "binary" and -1 in labels:
            raise BadField("labels holds -1; with data.step_labels = binary expected 0 and 1")
        if options.step_labels == "ternary":
            labels = [(label + 1) / 2 for label in labels]
    return stepwise(where, record, options, prompt_of(record, options), steps, labels)


def _judgement(label: Any, name: str) -> float:
    if label is None:
        return np.nan
    value = float(label) if isinstance(label, bool) else number(label, name)
    if value not in (_NOT_JUDGED, -1, 0, 1):
        raise BadField(
            f"{name} is {label!r}; expected true, false, 1, 0, -1, or -100 (not judged)",
            "a step's label is none of the known",
        )
    return np.nan if value == _NOT_JUDGED else value


def prm800k(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """PRM800K: `question.problem` and `label.steps`, of each the chosen completion's `text` and `rating` -1, 0, 1.

    A step that the labeller wrote (`human_completion`) is right. A step of which nothing was chosen ends the labelling:
    its first completion is the last step, if it has any. Alternatives that were not chosen are left out.
    """
    try:
        problem = record["question"]["problem"]
        chosen = []
        for step in record["label"]["steps"]:
            at, human = step.get("chosen_completion"), step.get("human_completion")
            if at is None and human is not None:
                chosen.append((human["text"], 1))
            elif entries := step.get("completions"):
                chosen.append((entries[at or 0]["text"], entries[at or 0].get("rating")))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadField(
            f"no PRM800K record ({type(error).__name__}: {error}); expected question.problem and "
            "label.steps[].completions[].text and .rating",
            "no PRM800K record",
        ) from error
    steps = texts([entry for entry, _ in chosen], "label.steps")
    labels = [_judgement(rating, f"label.steps[{i}].rating") for i, (_, rating) in enumerate(chosen)]
    labels = [(label + 1) / 2 for label in labels]  # neutral counts half
    return stepwise(where, record, options, problem, steps, labels if options.labelled else None)


def math_shepherd(where: str, record: dict[str, Any], options: ReadOptions) -> Comparison:
    """Math-Shepherd: `input`, the question and its steps each closed by `ки`; `label`, the same with + or - instead."""
    whole = text(record.get("input"), "input")
    found = _FIRST_STEP.search(whole)
    if found is None or _MARK not in whole[found.start() :]:
        raise BadField(
            f"input holds no 'Step 1:' with {_MARK!r} behind it; expected a question and steps, each closed "
            f"by {_MARK!r}",
            "input holds no step",
        )
    question = whole[: found.start()].replace(_MARK, "").strip()
    marks = [match.start() for match in re.finditer(_MARK, whole)]
    early = sum(mark < found.start() for mark in marks)  # the data has a few marks within questions
    bounds = [found.start(), *(mark + len(_MARK) for mark in marks[early:])]
    steps = [whole[a:b].removesuffix(_MARK).strip() for a, b in itertools.pairwise(bounds)]
    signs = None
    if options.labelled:
        label = text(record.get("label"), "label")
        # A sign is one character where the mark is two.
        at = [mark - i * (len(_MARK) - 1) for i, mark in enumerate(marks)][early:]
        found_signs = [label[i : i + 1] for i in at]
        if wrong := [i for i, sign in enumerate(found_signs, 1) if sign not in ("+", "-")]:
            raise BadField(f"label has no + or - after step {wrong[0]} of input", "label does not follow input")
        signs = [float(sign == "+") for sign in found_signs]
    return stepwise(where, record, options, question, texts(steps, "input's steps"), signs)


def stepwise(
    where: str, record: dict[str, Any], options: ReadOptions, prompt: Any, steps: list[str], labels: list[float] | None
) -> Comparison:
    """A prompt and the steps of one response, joined by the separator; a reward is read at each step's end."""
    response = options.step_separator.join(steps)
    ends = np.cumsum([len(step) for step in steps]) + len(options.step_separator) * np.arange(len(steps))
    if not isinstance(prompt, str | list):
        raise BadField(f"prompt is {prompt!r:.60}; expected a string or messages", "prompt is no string")
    # Strings are joined as they are, so the separator stands between prompt and steps too, as in TRL.
    joined = prompt + options.step_separator if isinstance(prompt, str) and options.strings == "joined" else prompt
    found = conversation(joined, response, "completions", options.strings == "chat")
    start = len(found) - len(response) if isinstance(found, str) else 0
    ends = ends + start
    values = None
    if labels is not None:
        values = np.array(labels, np.float32)[:, None]
        if np.isnan(values).all():
            raise BadField("no step is judged; remove the record, or label it")
    return Comparison(
        (found,), True, (), values, where, record, attributes=("correct",), steps=tuple(map(int, ends)), start=start
    )
