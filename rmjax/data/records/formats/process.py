"""Formats of process supervision: a prompt, the steps of one response, and a label per step."""

import itertools
import re
from typing import Any

import numpy as np

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, entries, number, text, texts, unexpected
from rmjax.data.records.formats.examples import missing
from rmjax.data.records.formats.preferences import with_subset
from rmjax.data.records.leftovers import missing_prompt
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Record

STEP_END = "ки"  # closes a step of Math-Shepherd
_FIRST_STEP = re.compile("[Ss]tep 1:")
_UNLABELED = -100  # a step's label in TRL's and NeMo-Aligner's data


def parse_process(where: str, record: Record, options: ReadOptions) -> Comparison:
    """TRL's stepwise form: `prompt`, `completions` (steps), `labels` (bool, 0 to 1, or -1, 0, 1; -100: unlabeled).

    A label between 0 and 1 is the probability that the step is right, as Monte Carlo estimates are. The meaning of 0
    follows from `options.step_labels`, or from the whole source (`rmjax.data.records.read`).
    """
    steps = texts(record.get("completions"), "completions")
    given = entries(record.get("labels"), "labels", len(steps), "step") if options.labeled else []
    labels = [_step_label(label, f"labels[{i}]", soft=True) for i, label in enumerate(given)]
    if options.step_labels == "binary" and -1 in labels:
        raise BadField("labels holds -1; with data.step_labels = binary expected 0 to 1")
    if options.step_labels == "ternary":
        if soft := [label for label in labels if 0 < label < 1]:
            raise BadField(
                f"labels holds {soft[0]:g}; with data.step_labels = ternary expected -1, 0 and 1",
                "labels holds a number between 0 and 1",
            )
        labels = [(label + 1) / 2 for label in labels]
    return _make_comparison(where, record, options, get_prompt(record, options), steps, labels)


def _step_label(label: Any, name: str, *, soft: bool = False) -> float:
    """Returns a step's label -1, 0 or 1, if `soft` also one between 0 and 1; NaN if it is unlabeled."""
    value = float(label) if isinstance(label, bool) else _UNLABELED if label is None else number(label, name)
    if value not in (_UNLABELED, -1, 0, 1) and not (soft and 0 < value < 1):
        scale = "0 to 1" if soft else "1, 0"
        raise unexpected(label, name, f"true, false, {scale}, -1, or -100 (unlabeled)")
    return np.nan if value == _UNLABELED else value


def parse_processbench(where: str, record: Record, options: ReadOptions) -> Comparison:
    """ProcessBench: `problem`, `steps`, and `label`, the index of the first wrong step, or -1 if all are right.

    Steps after the first wrong one are unlabeled.
    """
    if record.get("steps") is None:
        raise missing("steps", "processbench")
    steps, labels = texts(record.get("steps"), "steps"), []
    if options.labeled:
        first = number(record.get("label"), "label")
        if first not in range(-1, len(steps)):
            expected = f"-1 (all steps are right), or the index of the first wrong step, 0 to {len(steps) - 1}"
            raise BadField(f"label is {record['label']!r:.60}; expected {expected}", "label is not the index of a step")
        right = len(steps) if first == -1 else int(first)
        labels = [1.0 if i < right else 0.0 if i == right else np.nan for i in range(len(steps))]
    return _make_comparison(where, record, options, text(record.get("problem"), "problem"), steps, labels)


def parse_prmbench(where: str, record: Record, options: ReadOptions) -> Comparison:
    """PRMBench: `modified_question`, `modified_process` (steps), and `error_steps`, the wrong ones' numbers from 1.

    Its `classification` is the subset.
    """
    if record.get("modified_process") is None:
        raise missing("modified_process", "prmbench")
    steps, labels = texts(record.get("modified_process"), "modified_process"), []
    if options.labeled:
        if not isinstance(wrong := record.get("error_steps"), list):
            raise unexpected(wrong, "error_steps", "a list of step numbers, from 1")
        for i, step in enumerate(wrong):
            if number(step, f"error_steps[{i}]") not in range(1, len(steps) + 1):
                raise BadField(
                    f"error_steps[{i}] is {step!r:.60}; modified_process has the steps 1 to {len(steps)}",
                    "error_steps holds a number of no step",
                )
        labels = [float(i not in map(float, wrong)) for i in range(1, len(steps) + 1)]
    question = text(record.get("modified_question"), "modified_question")
    return with_subset(_make_comparison(where, record, options, question, steps, labels), "classification")


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
    """Returns the comparison of one response, its steps joined by the separator, with a readout for each step.

    The readout is at the step's end, and the separator also between a string prompt and the first step; or, with
    `step_readout = separator`, it is at the end of a separator after each step, and nothing follows the prompt (TRL).
    """
    separator, after = options.step_separator, options.step_readout == "separator"
    response = separator.join(steps) + separator * after
    if not isinstance(prompt, str | list):
        raise missing_prompt(record, prompt)
    joined = prompt + separator if isinstance(prompt, str) and options.strings == "joined" and not after else prompt
    conversation = join_conversation(joined, response, "completions", options)
    start = len(conversation) - len(response) if isinstance(conversation, str) else 0
    ends = start + np.cumsum([len(step) for step in steps]) + len(separator) * (np.arange(len(steps)) + after)
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
