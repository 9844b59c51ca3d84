"""Formats of published pairs with a label: Chatbot Arena, PKU-SafeRLHF, SHP, WebGPT, HelpSteer3, JudgeBench."""

from collections.abc import Callable, Mapping
from typing import Any

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, number, unexpected
from rmjax.data.records.formats.examples import EXAMPLES, missing
from rmjax.data.records.formats.preferences import compare_two, signed_label, with_subset
from rmjax.data.records.formats.turns import as_dialog, chat_messages, turn_texts
from rmjax.data.records.leftovers import missing_prompt
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Conversation, Edge, Record

ARENA_FIELDS = (  # each is a layout of Chatbot Arena
    {"conversation_a", "conversation_b"},
    {"response_a", "response_b"},
    {"response_1", "response_2", "winner"},
)
_WINNERS = {"model_a": 0, "model_b": 1, "tie": None, "both_bad": None}
_WINNER_COLUMNS = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": None}  # Kaggle's, one of which is 1
SAFETY_LABELS = {"better_response_id": "the more helpful response", "safer_response_id": "the safer one"}


def parse_arena(where: str, record: Record, options: ReadOptions) -> Comparison:
    """Chatbot Arena: `conversation_a`, `conversation_b`, or a `prompt` and two responses, and the `winner`.

    The responses are `response_a` and `response_b`, or `response_1` and `response_2` (PPE's human preferences). In
    Kaggle's files, prompt and responses are lists of turns (JSON text), and the winner has three columns. Of MT-Bench's
    conversations, `turn` is the last turn that was judged; later ones are left out.
    """
    names = ("conversation_a", "conversation_b")
    if any(record.get(name) is not None for name in names):
        conversations = [_judged_turns(record, name) for name in names]
        return compare_two(where, record, options, conversations, lambda: _winner(record))
    names = ("response_1", "response_2") if record.get("response_1") is not None else ("response_a", "response_b")
    prompts, *answers = (turn_texts(record.get(name), name) for name in ("prompt", *names))
    if not prompts or not all(answers):
        return _compare(where, record, options, "arena", get_prompt(record, options), names, lambda: _winner(record))
    dialogs = {name: as_dialog(prompts, turns or [], name) for name, turns in zip(names, answers, strict=True)}
    conversations = [join_conversation(None, turns, name, options) for name, turns in dialogs.items()]
    return compare_two(where, record, options, conversations, lambda: _winner(record))


def _judged_turns(record: Record, name: str) -> Conversation:
    if record.get(name) is None:
        raise missing(name, "arena")
    conversation = chat_messages(record.get(name), name)
    answers = [i for i, message in enumerate(conversation, 1) if message["role"] == "assistant"]
    if conversation[-1]["role"] == "user" or not answers:
        raise BadField(f"{name} ends in the user's turn; expected a response")
    turn = record.get("turn")
    return conversation[: answers[turn - 1]] if isinstance(turn, int) and 0 < turn < len(answers) else conversation


def _winner(record: Record) -> Edge | None:
    if record.get("winner") is not None or all(record.get(name) is None for name in _WINNER_COLUMNS):
        is_tie = str(record.get("winner")).startswith("tie (")  # bothbad, or inconsistent (MT-Bench)
        return None if is_tie else _choice(record, "winner", _WINNERS)
    values = {name: number(record.get(name), name) for name in _WINNER_COLUMNS}
    if sorted(values.values()) != [0, 0, 1]:
        raise unexpected(values, "winner", "one column of value 1 and two of value 0")
    return _edge(next(winner for name, winner in _WINNER_COLUMNS.items() if values[name]))


def parse_pku_saferlhf(where: str, record: Record, options: ReadOptions) -> Comparison:
    """PKU-SafeRLHF: `prompt`, `response_0`, `response_1`, `better_response_id` and `safer_response_id` (0 or 1).

    `options.label_field` chooses between the two labels, which often differ; one that is alone needs no choice.
    """
    prompt, names = get_prompt(record, options), ("response_0", "response_1")
    label = lambda: _choice(record, _safety_label(record, options), {0: 0, 1: 1})
    return _compare(where, record, options, "pku_saferlhf", prompt, names, label)


def _safety_label(record: Record, options: ReadOptions) -> str:
    given = [name for name in SAFETY_LABELS if record.get(name) is not None]
    if options.label_field in SAFETY_LABELS:
        return options.label_field
    if len(given) == 1:
        return given[0]
    meanings = " and ".join(f"{name} ({meaning})" for name, meaning in SAFETY_LABELS.items())
    raise BadField(f"there are two labels, {meanings}; choose one: data.label_field = {' or '.join(SAFETY_LABELS)}")


def parse_shp(where: str, record: Record, options: ReadOptions) -> Comparison:
    """SHP: `history` (a post), `human_ref_A`, `human_ref_B`, and `labels`: 1 if A is the preferred comment, else 0."""
    prompt, names = get_prompt(record, options, "history"), ("human_ref_A", "human_ref_B")
    return _compare(where, record, options, "shp", prompt, names, lambda: _choice(record, "labels", {1: 0, 0: 1}))


def parse_webgpt(where: str, record: Record, options: ReadOptions) -> Comparison:
    """WebGPT comparisons: `question` {full_text}, `answer_0`, `answer_1`, and `score_0`, `score_1` (higher is better).

    The quotes are not read.
    """
    question = get_prompt(record, options, "question")
    prompt = question.get("full_text") if isinstance(question, dict) else question

    def label() -> Edge | None:
        lead = number(record.get("score_0"), "score_0") - number(record.get("score_1"), "score_1")
        return Edge(int(lead < 0), int(lead > 0), abs(lead)) if lead else None

    return _compare(where, record, options, "webgpt", prompt, ("answer_0", "answer_1"), label)


def parse_helpsteer3(where: str, record: Record, options: ReadOptions) -> Comparison:
    """HelpSteer3: `context` (messages), `response1`, `response2`, `overall_preference` -3..3 (negative: the first).

    Its `domain` is the subset.
    """
    prompt, names = get_prompt(record, options, "context"), ("response1", "response2")
    label = lambda: signed_label(record, "overall_preference")
    return _compare(where, record, options, "helpsteer3", prompt, names, label, subset="domain")


def parse_judgebench(where: str, record: Record, options: ReadOptions) -> Comparison:
    """JudgeBench: `question`, `response_A`, `response_B`, `label` (`A>B` or `B>A`); its `source` is the subset."""
    prompt, names = get_prompt(record, options, "question"), ("response_A", "response_B")
    label = lambda: _choice(record, "label", {"A>B": 0, "B>A": 1})
    return _compare(where, record, options, "judgebench", prompt, names, label, subset="source")


def _compare(
    where: str,
    record: Record,
    options: ReadOptions,
    format: str,
    prompt: Any,
    names: tuple[str, str],
    label: Callable[[], Edge | None],
    subset: str = "",
) -> Comparison:
    """Returns the comparison of the responses in the fields `names`; `subset` is the field with its subset."""
    for name in names:
        if record.get(name) is None:
            raise missing(name, format)
    if prompt is None:
        raise missing_prompt(record, prompt, missing(next(iter(EXAMPLES[format])), format))
    conversations = [join_conversation(prompt, record.get(name), name, options) for name in names]
    return with_subset(compare_two(where, record, options, conversations, label), subset)


def _choice(record: Record, name: str, winners: Mapping[Any, int | None]) -> Edge | None:
    """Returns the edge of a field whose values are the keys of `winners`; None for a tie."""
    value = record.get(name)
    if not isinstance(next(iter(winners)), str):
        value = number(value, name)
    if not isinstance(value, str | float) or value not in winners:
        raise unexpected(record.get(name), name, " or ".join(map(str, winners)))
    return _edge(winners[value])


def _edge(winner: int | None) -> Edge | None:
    return None if winner is None else Edge(winner, 1 - winner)
