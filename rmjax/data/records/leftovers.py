"""What a format did not read of a record: content that would be lost is refused or reported.

The rule goes by content (`content.content_kind`): conversations, media, and text that differs from record to record.

* A conversation that is not read is refused, unless all its texts are in the conversations that were read.
* Media (images, audio, video) are refused, since only text is scored.
* Text that is not read is refused in a record without a prompt. Beside a prompt it is refused if the field's name says
  that it is part of a prompt (`input`, `chat_history`); other texts, such as a rationale, are reported only.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Iterable
from typing import Any

from rmjax.data.records.content import (
    CONVERSATION,
    MEDIA,
    TEXT,
    content_kind,
    decode,
    has_user_turn,
    is_prose,
    strings,
    turns,
)
from rmjax.data.records.fields import BadField, unexpected, without_null
from rmjax.data.records.report import FieldValues, ReadReport
from rmjax.data.records.tracking import TrackedRecord
from rmjax.data.schema import Comparison, Record

# The last word of names under which published data has a prompt, or a part of it.
_PROMPT_WORDS = ("prompt", "question", "instruction", "input", "context", "history", "query")
_SYSTEM = "system"  # the first word of names of system messages; alone in some data an identifier
_BEFORE = ("context", "history")  # names of what comes before the rest of the prompt
_TEMPLATE_OPTIONS = "chat_template_kwargs"  # TRL's field
_SHORT = 20  # characters of a text that may be in another one by chance
_HELD = {CONVERSATION: "a conversation", TEXT: "text"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@functools.lru_cache(1024)  # of every record the same names
def is_prompt_name(name: str) -> bool:
    """Whether a field's name says that it is a prompt or a part of one.

    >>> [is_prompt_name(name) for name in ("input", "chat_history", "userQuery", "question_id", "prompt_source")]
    [True, True, True, False, False]
    """
    return _last_word(name) in _PROMPT_WORDS


def _last_word(name: str) -> str:
    return (_WORDS.findall(name) or [""])[-1].lower().removesuffix("s")


def _is_system_name(name: str) -> bool:
    return (_WORDS.findall(name) or [""])[0].lower() == _SYSTEM


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the first records of a source tell of its fields, by their names in the source.

    Attributes:
      texts: fields whose values are mostly prose, and differ from record to record: short values are texts too.
      labels: fields with one value, or few short ones, in several records.
    """

    texts: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Survey":
        """Returns the survey of records."""
        found: dict[str, FieldValues] = {}
        prose: dict[str, int] = {}
        for record in records:
            for name, value in (record.row if isinstance(record, TrackedRecord) else record).items():
                if isinstance(value, str) and value.strip():
                    found.setdefault(name, FieldValues(TEXT)).add(value)
                    prose[name] = prose.get(name, 0) + is_prose(value)
        labels = {name for name, values in found.items() if not values.differs}
        texts = {name for name, values in found.items() if 2 * prose[name] > values.count}
        return cls(frozenset(texts - labels), frozenset(labels))

    def kind(self, name: str, value: Any) -> str:
        """Returns the kind of a field's content: `content_kind`, or text for short values of a text's field."""
        if kind := content_kind(value):
            return kind
        may_be_text = name in self.texts or (is_prompt_name(name) and name not in self.labels)
        return TEXT if may_be_text and any(strings(value)) else ""

    def is_lost(self, name: str, kind: str, has_prompt: bool) -> bool:
        """Whether a record cannot be used unless this field is read."""
        if kind != TEXT or is_prompt_name(name) or _is_system_name(name):
            return True
        return not has_prompt and name not in self.labels


def check_fields(
    record: TrackedRecord,
    comparison: Comparison,
    survey: Survey,
    report: ReadReport,
    *,
    allowed: Collection[str] = (),
    has_prompt: bool | None = None,
) -> None:
    """Updates the report with the use of the record's fields; raises BadField if content would be lost.

    Args:
      comparison: what was made of the record.
      allowed: fields that the format has beside the conversation; they are reported only.
      has_prompt: whether the comparison has a prompt; None: see `_has_prompt`.
    """
    unread = record.unread()
    _check_template_options(unread.get(_TEMPLATE_OPTIONS))
    has_prompt = _has_prompt(record, comparison) if has_prompt is None else has_prompt
    lost = []
    for name, value in unread.items():
        if isinstance(value, str | list | dict) and (not value or _is_copy(value, record)):
            continue
        if not (kind := survey.kind(name, value)) or (kind != MEDIA and _is_contained(name, value, kind, comparison)):
            continue
        is_lost = name not in allowed and survey.is_lost(name, kind, has_prompt)
        report.add_unread(name, kind, value, required=is_lost)
        lost += [(name, kind)] if is_lost else []
    if media := [name for name, kind in lost if kind == MEDIA]:
        raise BadField(
            f"{media[0]!r} is not read, and holds images, audio or video; only text is scored: remove the records that "
            f"need them, or leave it out (data.columns = '{media[0]}=_')"
        )
    if lost:
        raise _beside_prompt(*lost[0], record, comparison) if has_prompt else _no_prompt(lost)
    report.no_prompt += not has_prompt
    if new := _new_fields(record, report):
        prompts = _prompt_fields(record, comparison, new)
        for name in new:
            use = "prompt" if name in prompts else name
            report.used |= {source: use for source in record.sources(name) if source not in report.used}


def _check_template_options(value: Any) -> None:
    """Raises BadField if a record has options of the chat template, which change how it is rendered."""
    if options := without_null(decode(value)):
        raise BadField(
            f"{_TEMPLATE_OPTIONS} is {options!r:.60}; a record's options of the chat template are not applied: write "
            f"their effect into its messages, or leave it out (data.columns = '{_TEMPLATE_OPTIONS}=_')",
            f"{_TEMPLATE_OPTIONS} is given",
        )


def explain_failure(record: TrackedRecord, error: BadField) -> BadField:
    """Returns why a record cannot be parsed: that its prompt has another name, if so, which explains other errors."""
    if not record.without_prompt or any(content_kind(dict.get(record, name)) == CONVERSATION for name in record.read):
        return error
    return missing_prompt(record, None, error)


def missing_prompt(record: Record, prompt: Any, otherwise: BadField | None = None) -> BadField:
    """Returns the error of a record without the prompt that its format needs; names the fields that may be it.

    If there are none, the error is that `prompt` is wrong; or `otherwise`, if no field has the name of a prompt.
    """
    unread = record.unread() if isinstance(record, TrackedRecord) else {}
    kinds = {name: Survey().kind(name, value) for name, value in unread.items()}
    found = [(name, kind) for name, kind in kinds.items() if kind in _HELD]
    if otherwise is not None and not any(is_prompt_name(name) for name, _ in found):
        return otherwise
    return _no_prompt(found) if found else unexpected(prompt, "prompt", "a string or messages")


def _no_prompt(fields: list[tuple[str, str]]) -> BadField:
    """Returns the error of a record without a prompt that has unread fields, (name, kind) each."""
    # If some have a prompt's name, the others may be notes that are not lost beside a prompt.
    fields = [(name, kind) for name, kind in fields if is_prompt_name(name)] or fields
    names, (first, kind) = [name for name, _ in fields], fields[0]
    if len(fields) == 1:
        return BadField(
            f"there is no prompt, but {first!r}; it holds {_HELD[kind]} and is not read: if it is the prompt, rename "
            f"it (data.columns = '{first}=prompt'), else leave it out (data.columns = '{first}=_')"
        )
    joined = ",".join(f"'{name}=prompt'" for name in names)
    return BadField(
        f"there is no prompt, but {', '.join(map(repr, names))}; they hold text and are not read: rename those that "
        f"are the prompt (data.columns = {joined} joins them), leave out the others (data.columns = '{names[-1]}=_')"
    )


def _beside_prompt(name: str, kind: str, record: TrackedRecord, comparison: Comparison) -> BadField:
    """Returns the error of a record with a prompt, and a field that is not read and belongs to it by its content."""
    prompts = _prompt_fields(record, comparison, [field for field in record if field in record.read])
    what = f"{name!r} is not read, and holds {_HELD[kind]} beside the {'prompt' if prompts else 'conversation'}"
    value = record.row[name]
    first = comparison.conversations[0]
    has_system = isinstance(first, list) and first[0]["role"] == _SYSTEM
    if _is_system_name(name) and (has_system or name == "system_prompt" or not isinstance(value, str)):
        fix = "put it into the conversation, or leave it out"
    elif _is_system_name(name):
        fix = f"if it is a system message, rename it (data.columns = '{name}=system_prompt'), else leave it out"
    elif prompts and (isinstance(value, str) if kind == TEXT else _is_messages(value)):
        is_before = kind == CONVERSATION or _last_word(name) in _BEFORE
        names = (name, *record.sources(prompts[0])) if is_before else (*record.sources(prompts[0]), name)
        joined = ",".join(f"'{source}={prompts[0]}'" for source in names)
        fix = f"if it belongs to the prompt, join them in their order (data.columns = {joined}), else leave it out"
    else:
        fix = "put it into the conversation, or leave it out"
    return BadField(f"{what}; {fix} (data.columns = '{name}=_')")


def _is_messages(value: Any) -> bool:
    """Whether a value is a list of messages in a layout that `fields.messages` reads."""
    is_message = lambda entry: isinstance(entry, dict) and bool({"role", "from"} & entry.keys())
    return isinstance(value, list) and all(map(is_message, value))


def _has_prompt(record: TrackedRecord, comparison: Comparison) -> bool:
    """Whether each conversation has something before the response.

    Of messages: one by another role than the response's and the system. Of strings: a field that was read is the
    string's start, or the string marks a user's turn. Strings that come from no field of the record, and lines of
    NeMo-Aligner's `text`, are taken to have a prompt.
    """
    whole = comparison.conversations
    if any(isinstance(conversation, list) for conversation in whole):
        return all(isinstance(conversation, str) or _has_turns(conversation) for conversation in whole)
    if not comparison.add_eos or comparison.start or not record.read:
        return True
    texts = [conversation for conversation in whole if isinstance(conversation, str)]
    for name in record.read:
        value = dict.get(record, name)
        empty = is_prompt_name(name)  # an empty response is accepted for scoring
        if any(_opens(start, texts, empty) for start in ((value,) if isinstance(value, str) else strings(value))):
            return True
    return all(map(has_user_turn, texts))


def _opens(start: str, texts: list[str], may_end: bool) -> bool:
    """Whether texts begin with `start`, which is not blank, and go on, unless they may end there."""
    begins = texts[0].startswith(start) and bool(start.strip())
    return begins and all((may_end or len(text) > len(start)) and text.startswith(start) for text in texts)


def _has_turns(conversation: list[dict[str, Any]]) -> bool:
    *before, last = conversation
    return any(
        message["role"] not in ("system", last["role"]) and (message.get("content") or message.get("tool_calls"))
        for message in before
    )


def _is_copy(value: Any, record: TrackedRecord) -> bool:
    """Whether a field that was read has the same value."""
    return any(value == dict.get(record, name) for name in record.read)


def _is_contained(name: str, value: Any, kind: str, comparison: Comparison) -> bool:
    """Whether all texts of a value, of a transcript its turns, were read: for a prompt's name, before the response."""
    if kind == TEXT and is_prompt_name(name):
        read, parts = _before_response(comparison), strings(value)
    else:
        read = []
        for conversation in comparison.conversations:
            read += [conversation] if isinstance(conversation, str) else strings(conversation)
        parts = (turn for text in strings(value) for turn in turns(text)) if kind == CONVERSATION else strings(value)
    return all(any(_is_in(part, text) for text in read) for part in parts)


def _is_in(part: str, text: str) -> bool:
    """Whether a text is in another: if it is short, as whole lines or at an end, since it may be found by chance."""
    if len(part) > _SHORT or part not in text:
        return part in text
    return text.startswith(part) or text.endswith(part) or f"\n{part}\n" in f"\n{text}\n"


def _new_fields(record: TrackedRecord, report: ReadReport) -> list[str]:
    """Returns the fields that were read, have a value, and are not in the report yet, in the record's order."""
    new = record.read - report.used.keys()
    if record.origins:
        new = {name for name in record.read if any(source not in report.used for source in record.sources(name))}
    return [name for name in record if name in new and dict.get(record, name) not in (None, "", [], {})] if new else []


def _before_response(comparison: Comparison) -> list[str]:
    """Returns the texts before the response: of messages, of strings what they have in common."""
    first = comparison.conversations[0]
    if isinstance(first, list):
        return list(strings(first[:-1]))
    if len(comparison.conversations) == 1:
        return [first[: comparison.start or None]]
    texts = [conversation for conversation in comparison.conversations if isinstance(conversation, str)]
    common = itertools.takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return ["".join(characters[0] for characters in common)]


def _prompt_fields(record: TrackedRecord, comparison: Comparison, names: Iterable[str]) -> list[str]:
    """Returns those of the fields `names` whose texts are whole lines of the part before the response."""
    if len(comparison.conversations) == 1 and isinstance(comparison.conversations[0], str) and not comparison.start:
        return []  # a whole text
    lines = [f"\n{text.strip()}\n" for text in _before_response(comparison)]
    is_before = lambda text: any(f"\n{text}\n" in line or line.startswith(f"\n{text}") for line in lines)
    found = []
    for name in names:
        value = dict.get(record, name)
        texts = list(strings(value))
        # An object may have more than the prompt: WebGPT's `question` has the name of a data set.
        if texts and (any if isinstance(value, dict) else all)(map(is_before, texts)):
            found.append(name)
    return found
