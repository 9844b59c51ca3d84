"""Chat templates: the date that they write, what they leave out of messages, and what they add of their own."""

import dataclasses
import datetime
import functools
import html
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from rmjax.core.text import count_of
from rmjax.data.records.roles import ROLES
from rmjax.data.records.tools import split_tools
from rmjax.data.schema import Message

# The date of models that store none: the one that the templates of Llama 3.1 and 3.2 write without a clock.
DEFAULT_DATE = "2024-07-26"
_CLOCK = "strftime_now"  # the function with which transformers lets a template write the present date
_CODES = "aAbBcdfFGHIjmMpRSTuUVwWxXyYzZ"  # of strftime
_PADDED = "dHIjmMSy"  # those that `%-` shortens
_REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of a message that hold text beside its content
_CLOSING_TAG = re.compile(r"</[\w:-]{1,20}>|\[/\w{1,20}\]")
_MAX_SHOWN = 300  # characters of a text of the template's own
_MIN_PART = 8  # characters of a message's start or end that are not found in another text by chance


def today() -> datetime.date:
    """Returns the present local date."""
    return datetime.date.today()


def uses_clock(source: str) -> bool:
    """Whether a template writes the present date or time."""
    return _CLOCK in source


@functools.lru_cache
def fix_clock(source: str, date: str) -> str:
    """Returns a template whose clock stands at the start of a day; one without a clock is returned as it is.

    The function of transformers is replaced by a macro of the same name, since transformers passes no functions to
    templates.
    """
    if not uses_clock(source):
        return source
    start = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time())
    texts = {f"%{code}": start.strftime(f"%{code}") for code in _CODES}
    texts |= {"%e": f"{start.day:2}"} | {f"%-{code}": texts[f"%{code}"].lstrip("0") or "0" for code in _PADDED}
    replaced = [["%%", "\0"], *map(list, texts.items()), ["\0", "%"]]
    return (
        f"{{% macro {_CLOCK}(format) %}}{{% set found = namespace(text=format) %}}"
        f"{{% for code, text in {json.dumps(replaced)} %}}"
        "{% set found.text = found.text.replace(code, text) %}{% endfor %}{{ found.text }}"
        # transformers removes a line's end after a block: the template begins on a new line, as without the macro.
        f"{{% endmacro %}}\n{source}"
    )


def names_role(source: str, role: str) -> bool:
    """Whether a template compares roles with this one."""
    return f"'{role}'" in source or f'"{role}"' in source


def find_left_out(conversation: Sequence[Message], text: str) -> tuple[str, ...]:
    """Returns what of a conversation is not in the text that a template made of it, as `role: what`.

    White space does not count, nor does the order of the messages; texts may be escaped as in JSON or in HTML. Of a
    tool call, the function's name and each text and number of its arguments have to be found, of a tool the function's
    name and description.

    >>> find_left_out([{"role": "assistant", "content": "<think>Hm.</think> Yes."}], "assistant: Yes.")
    ('assistant: text up to </think>',)
    """
    messages, tools = split_tools(conversation)
    if not tools and _in_order(messages, text):
        return ()
    remaining, found, missing = _squeeze(text), set(), []
    parts = [
        (message["role"], key, part)
        for message in messages
        for key in ("content", *_REASONING)
        if isinstance(part := message.get(key), str)
    ]
    for role, key, part in sorted(parts, key=lambda entry: -len(entry[2])):  # a text may be part of a longer one
        if (form := _find(part, remaining)) is None:
            missing.append((role, key, part))
        else:
            remaining = remaining.replace(form, "\0", 1)
    for role, key, part in missing:
        found.add(f"{role}: {_describe_missing(_squeeze(part), remaining) if key == 'content' else key}")
    for message in messages:
        calls = message.get("tool_calls")
        if not all(_has_call(call, remaining) for call in (calls if isinstance(calls, list) else ())):
            found.add(f"{message['role']}: tool calls")
    functions = [function for tool in tools if (function := _function(tool)) is not None]
    described = [function.get(key) for function in functions for key in ("name", "description")]
    if any(isinstance(part, str) and _find(part, remaining) is None for part in described):
        found.add("tools")
    return tuple(sorted(found))


def _in_order(messages: Sequence[Message], text: str) -> bool:
    """Whether the contents are in a text one after the other, and the messages have no other texts; fast."""
    end = 0
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str) or message.get("tool_calls") or any(key in message for key in _REASONING):
            return False
        content = content.strip()
        if (start := text.find(content, end)) < 0:
            return False
        end = start + len(content)
    return True


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _find(part: str, squeezed: str) -> str | None:
    """Returns the form, as it is or escaped, in which a text is in another one, both without white space; or None."""
    part = part.strip()
    if (plain := _squeeze(part)) in squeezed:
        return plain
    html_form = html.escape(part).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")  # as Jinja's filter `escape`
    forms = {json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1], html_form} - {part}
    return next((form for form in map(_squeeze, forms) if form in squeezed), None)


def _describe_missing(content: str, remaining: str) -> str:
    """Returns which part of a content is not in the remaining text; both without white space."""
    for tag in reversed(list(_CLOSING_TAG.finditer(content))):
        if (rest := content[tag.end() :]) and rest in remaining:
            return f"text up to {tag[0]}"
    size = len(content)
    start = _largest(size, lambda count: content[:count] in remaining)
    end = _largest(size - start, lambda count: content[size - count :] in remaining)
    if start + end >= _MIN_PART:
        return "the end" if not end else "the start" if not start else "a part in the middle"
    return "letter case" if content.casefold() in remaining.casefold() else "the whole message"


def _largest(limit: int, holds: Callable[[int], bool]) -> int:
    """Returns the largest number up to `limit` for which `holds`, given that it holds for all smaller ones."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _has_call(call: Any, remaining: str) -> bool:
    """Whether the function's name and the arguments of a tool call are in a text without white space."""
    if (function := _function(call)) is None:
        return True  # of a form that only the template knows
    arguments = function.get("arguments")
    if isinstance(arguments, str) and _find(arguments, remaining) is None:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return False
    leaves = () if isinstance(arguments, str) else _leaves(arguments)
    return all(_find(text, remaining) is not None for text in (function["name"], *leaves))


def _function(entry: Any) -> dict[str, Any] | None:
    """Returns the function of a tool call or of a tool; None if there is none with a name."""
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _leaves(value: Any) -> Iterator[str]:
    """Yields the texts and numbers in a JSON value."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry)
    elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield str(value)


@dataclasses.dataclass
class TemplateReport:
    """Numbers of the comparisons that a chat template rendered, and of those of which it left out content.

    `left_out` counts comparisons by what is left out (see `find_left_out`), `first_left_out` has the `path:line` of the
    first one of each kind.
    """

    rendered: int = 0
    incomplete: int = 0
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    first_left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def count_rendered(self, where: str, kinds: Collection[str]) -> None:
        """Counts a comparison of which the template left out `kinds`."""
        self.rendered += 1
        self.incomplete += bool(kinds)
        for kind in sorted(kinds):
            self.left_out[kind] = self.left_out.get(kind, 0) + 1
            self.first_left_out.setdefault(kind, where)

    def merge_left_out(self, other: "TemplateReport") -> None:
        """Adds the report of later comparisons."""
        self.rendered += other.rendered
        self.incomplete += other.incomplete
        for kind, count in other.left_out.items():
            self.left_out[kind] = self.left_out.get(kind, 0) + count
            self.first_left_out.setdefault(kind, other.first_left_out[kind])

    def describe_left_out(self) -> str:
        """Returns what the template left out, with count and first example of each kind; empty if nothing."""
        if not self.incomplete:
            return ""
        kinds = sorted(self.left_out.items(), key=lambda entry: -entry[1])
        shown = ", ".join(f"{kind} ({count:,}; first: {self.first_left_out[kind]})" for kind, count in kinds)
        return (
            f"the chat template leaves out content of {self.incomplete:,} of "
            f"{count_of(self.rendered, 'comparison')}: {shown}"
        )


PROBE = ({"role": "user", "content": "{user}"}, {"role": "assistant", "content": "{assistant}"})
_ROLE = re.compile(rf"\W*({'|'.join(ROLES)}|model) *(?:[:\n]|$)", re.IGNORECASE)  # opens a message


def describe_additions(texts: Iterable[str]) -> list[str]:
    r"""Returns the texts of a template's own, given the rendered `PROBE` split at contents and special tokens.

    A role's name is not one.

    >>> describe_additions(["", "system\nBe kind.", "\n", "user\n", "", "\n", "assistant\n", ""])
    ["'Be kind.' (system message)"]
    """
    found, role = [], ""
    for text in texts:
        if match := _ROLE.match(text):
            role, text = match[1].lower(), text[match.end() :]
        if text := " ".join(text.split()):
            shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
            found.append(f"{shown!r}" + (f" ({role} message)" if role else ""))
    return found
