"""Formats of process supervision: a prompt, the steps of one response, and a label per step."""

import itertools
import re
from typing import Any

import numpy as np

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, entries, number, text, texts, unexpected
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Record

STEP_END = "ки"  # closes a step of Math-Shepherd
_FIRST_STEP = re.compile("[Ss]tep 1:")
_UNLABELED = -100  # a step's label in TRL's and NeMo-Aligner's data


def parse_process(where: str, record: Record, options: ReadOptions) -> Comparison:
    """TRL's stepwise form: `prompt`, `completions` (steps), `labels` (bool, 0 and 1, or -1, 0, 1; -100: unlabeled).

    The meaning of 0 follows from `options.step_labels`, or from the whole source (`read.normalize_step_labels`).
    """
    steps = texts(record.get("completions"), "completions")
    given = entries(record.get("labels"), "labels", len(steps), "step") if options.labeled else []
    labels = [_step_label(label, f"labels[{i}]") for i, label in enumerate(given)]
    if options.step_labels == "binary" and -1 in labels:
        raise BadField("labels holds -1; with data.step_labels = binary expected 0 and 1")
    if options.step_labels == "ternary":
        labels = [(label + 1) / 2 for label in labels]
    return _make_comparison(where, record, options, get_prompt(record, options), steps, labels)


def _step_label(label: Any, name: str) -> float:
    """Returns a step's label -1, 0 or 1, or NaN if it is unlabeled."""
    value = float(label) if isinstance(label, bool) else _UNLABELED if label is None else number(label, name)
    if value not in (_UNLABELED, -1, 0, 1):
        raise unexpected(label, name, "true, false, 1, 0, -1, or -100 (unlabeled)")
    return np.nan if value == _UNLABELED else value


def parse_prm800k(where: str, record: Record, options: ReadOptions) -> Comparison:
    """PRM800K: `question.problem`, and `label.steps`, each with a chosen completion's `text` and `rating` -1, 0, 1.

    A step written by the annotator (`human_completion`) is right. A step without a choice ends the annotation: its
    first completion, if any, is the last step. Alternatives that were not chosen are left out.
    """
    try:
        problem = record["question"]["problem"]
        chosen = []
        for step in record["label"]["steps"]:
            index, human = step.get("chosen_completion"), step.get("human_completion")
            if index is None and human is not None:
                chosen.append((human["text"], 1))
            elif completions := step.get("completions"):
                chosen.append((completions[index or 0]["text"], completions[index or 0].get("rating")))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadField(
            "not a PRM800K record; expected question.problem and label.steps[].completions[].text and .rating "
            f"({type(error).__name__}: {error})"
        ) from error
    steps = texts([step for step, _ in chosen], "label.steps")
    labels = [_step_label(rating, f"label.steps[{i}].rating") for i, (_, rating) in enumerate(chosen)]
    return _make_comparison(where, record, options, problem, steps, [(label + 1) / 2 for label in labels])


def parse_math_shepherd(where: str, record: Record, options: ReadOptions) -> Comparison:
    """Math-Shepherd: `input`, the question and steps each closed by `ки`; `label`, the same with + or - for `ки`."""
    whole = text(record.get("input"), "input")
    first = _FIRST_STEP.search(whole)
    if first is None or STEP_END not in whole[first.start() :]:
        raise BadField(f"input has no step; expected a question and 'Step 1:', each step closed by {STEP_END!r}")
    question = whole[: first.start()].replace(STEP_END, "").strip()
    marks = [match.start() for match in re.finditer(STEP_END, whole)]
    in_question = sum(mark < first.start() for mark in marks)  # a few records have marks within the question
    bounds = [first.start(), *(mark + len(STEP_END) for mark in marks[in_question:])]
    steps = [whole[a:b].removesuffix(STEP_END).strip() for a, b in itertools.pairwise(bounds)]
    signs: list[str] = []
    if options.labeled:
        label = text(record.get("label"), "label")
        # In `label` a sign of one character replaces each mark of two, so that later positions shift to the left.
        positions = [mark - i * (len(STEP_END) - 1) for i, mark in enumerate(marks)][in_question:]
        signs = [label[i : i + 1] for i in positions]
        if wrong := [i for i, sign in enumerate(signs, 1) if sign not in ("+", "-")]:
            raise BadField(f"label has no + or - after step {wrong[0]} of input", "label does not follow input")
    labels = [float(sign == "+") for sign in signs]
    return _make_comparison(where, record, options, question, texts(steps, "input's steps"), labels)


def _make_comparison(
    where: str, record: Record, options: ReadOptions, prompt: Any, steps: list[str], labels: list[float]
) -> Comparison:
    """Returns the comparison of one response, its steps joined by the separator, with a readout at each step's end."""
    separator = options.step_separator
    response = separator.join(steps)
    if not isinstance(prompt, str | list):
        raise unexpected(prompt, "prompt", "a string or messages")
    # As in TRL, the separator is also put between a string prompt and the steps.
    joined = prompt + separator if isinstance(prompt, str) and options.strings == "joined" else prompt
    conversation = join_conversation(joined, response, "completions", options)
    start = len(conversation) - len(response) if isinstance(conversation, str) else 0
    ends = start + np.cumsum([len(step) for step in steps]) + len(separator) * np.arange(len(steps))
    values = np.array(labels, np.float32)[:, None] if options.labeled else None
    if values is not None and np.isnan(values).all():
        raise BadField("no step is labeled; remove the record, or label it")
    return Comparison(
        (conversation,),
        True,
        (),
        values,
        where,
        record,
        attributes=("correct",),
        steps=tuple(ends.tolist()),
        start=start,
    )
