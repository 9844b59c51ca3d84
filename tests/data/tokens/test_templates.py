"""Chat templates: the clock, content that is left out, additions, and roles."""

import datetime

import pytest
import transformers.utils.chat_template_utils as chat_template_utils

from rmjax.core.errors import InputError
from rmjax.core.program import TEMPLATE_DATE_HELP
from rmjax.data.tokens.templates import DEFAULT_DATE, TemplateReport, find_left_out, fix_clock
from rmjax.data.tokens.tokenizer import Tokenizer, byte_level

# The ways in which Llama 3.2, gpt-oss and Mistral write the date, and the white space that a prefix could disturb.
LLAMA = """   {%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|im_start|>system\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n'+ message['content'] | trim + '<|im_end|>' }}
{%- endfor %}"""
GPT_OSS = """{#- A comment -#}
{%- macro build_system_message() -%}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
{%- endmacro -%}
{{- "<|im_start|>system\\n" }}{{- build_system_message() }}
{%- for m in messages %}{{ m.role + m.content }}{% endfor %}"""
CODES = """
  {% for m in messages %}
    {{ strftime_now('%A, %-d %B %y, week %V, 100%% at %H:%M:%S %p (%e/%m, %-j)') }}, {{ strftime_now('%Y') | int - 1 }}
  {{ m.content }}
  {% endfor %}
"""
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def with_template(template, date=DEFAULT_DATE):
    base = byte_level()
    base.chat_template = template
    return Tokenizer(base, "test", date)


@pytest.mark.parametrize("template", [LLAMA, GPT_OSS, CODES], ids=["llama", "gpt-oss", "codes"])
def test_clock_stands_at_the_start_of_the_date(template, monkeypatch):
    class Clock:
        @staticmethod
        def now():
            return datetime.datetime(2026, 11, 6)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = with_template(template, "2026-11-06")
    expected = tokenizer.base.apply_chat_template(CHAT, tokenize=False)
    monkeypatch.undo()
    assert "2026" in expected or "6 November 26" in expected
    assert tokenizer.render(CHAT) == expected
    assert with_template(template, "2026-11-07").render(CHAT) != expected


def test_date_is_part_of_the_fingerprint_only_with_a_clock():
    dates = ("2026-11-06", "2026-11-07")
    assert len({with_template(LLAMA, date).fingerprint for date in dates}) == 2
    plain = byte_level().chat_template
    assert len({with_template(plain, date).fingerprint for date in dates}) == 1
    assert fix_clock(plain, "2026-11-06") == plain


@pytest.mark.parametrize("date", ["26 Nov 2026", "2026-13-01", "2026-11-06T10:00", "20261106"])
def test_a_date_of_another_form_is_an_error(date):
    with pytest.raises(InputError, match=r"config\.data\.template_date is '.*'; expected a date as YYYY-MM-DD"):
        Tokenizer.load("", date)


def test_help_names_the_default_date():
    assert DEFAULT_DATE in TEMPLATE_DATE_HELP


THINKING = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}
{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"""
NO_SYSTEM = """{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"""
SYSTEM_LAST = """{% for m in messages if m.role != 'system' %}{% if loop.last %}{{ messages[0].content }}{% endif %}
{{ m.content }}{% endfor %}"""
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
WITHOUT_CALLS = "{% for m in messages %}{{ m.role + ': ' + (m.content or '') + '\n' }}{% endfor %}"
WITH_CALLS = """{% for m in messages %}{{ m.role + ': ' + (m.content or '') }}{% for call in m.tool_calls or [] %}
{{ call.function | tojson }}{% endfor %}{% endfor %}"""
XML_CALLS = """{% for m in messages %}{{ m.role + ': ' + (m.content or '') }}{% for call in m.tool_calls or [] %}
<{{ call.function.name }}>{% for key, value in call.function.arguments.items() %}<{{ key }}>{{ value }}</{{ key }}>
{% endfor %}{% endfor %}{% endfor %}"""


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments):
    return [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]


THOUGHT = assistant("<think>\nHm.\n</think>\n\n4")
ASKED = user("Is it cold in Paris?")
CASES = {
    "nothing": (PLAIN, [system("Be kind."), *CHAT], ()),
    "thinking": (THINKING, [user("2+2?"), THOUGHT], ("assistant: text up to </think>",)),
    "thinking, in brackets": (
        PLAIN.replace("m.content", "m.content.split('[/THINK]')[-1]"),
        [user("2+2?"), assistant("[THINK]Hm.[/THINK]4")],
        ("assistant: text up to [/THINK]",),
    ),
    "thinking of an earlier turn": (
        THINKING.replace("m.role == 'assistant'", "m.role == 'assistant' and not loop.last"),
        [user("2+2?"), THOUGHT, user("3+3?"), assistant("<think>Hm.</think>6")],
        ("assistant: text up to </think>",),
    ),
    "no thinking": (THINKING, [user("2+2?"), assistant("4")], ()),
    "system": (NO_SYSTEM, [system("Be kind."), *CHAT], ("system: the whole message",)),
    "system in a longer text": (NO_SYSTEM, [system("Hi"), user("Hi there"), assistant("Hello")],
                                ("system: the whole message",)),
    "system moved": (SYSTEM_LAST, [system("Be kind."), user("a"), assistant("b"), user("c")], ()),
    "stripped": (PLAIN.replace("m.content", "m.content | trim"), [user(" Hi \n"), assistant("\n\nHello\n")], ()),
    "white space": (PLAIN.replace("m.content", "m.content.replace('\n\n', '\n')"), [user("a\n\nb"), *CHAT], ()),
    "HTML": (PLAIN.replace("m.content", "(m.content | e)"), [user("""<b a='1' c="2">&amp;</b>"""), *CHAT], ()),
    "JSON": (PLAIN.replace("m.content", "(m.content | tojson)"), [user('é "quoted"\n\\line\t😀'), *CHAT], ()),
    "JSON, ASCII": (PLAIN.replace("m.content", "(m.content | tojson(true))"), [user('é "😀"\n'), *CHAT], ()),
    "end": (PLAIN.replace("m.content", "m.content[:12]"), [user("Which of these is it?"), *CHAT], ("user: the end",)),
    "start": (PLAIN.replace("m.content", "m.content[6:]"), [user("Which of these?"), assistant("It is the last one")],
              ("assistant: the start", "user: the start")),
    "middle": (
        PLAIN.replace("m.content", "m.content.replace('of these ', '')"),
        [user("Which of these is it?"), *CHAT],
        ("user: a part in the middle",),
    ),
    "letter case": (PLAIN.replace("m.content", "m.content.upper()"), [user("Which is it?"), assistant("1")],
                    ("user: letter case",)),
    "reasoning": (PLAIN, [user("2+2?"), assistant("4", reasoning_content="Hm.")], ("assistant: reasoning_content",)),
    "reasoning rendered": (
        PLAIN.replace("m.content", "(m.reasoning_content or '') + m.content"),
        [user("2+2?"), assistant("4", reasoning_content="Hm.")],
        (),
    ),
    "calls left out": (
        WITHOUT_CALLS,
        [ASKED, {"role": "assistant", "tool_calls": call({"city": "Paris"})}, {"role": "tool", "content": "3 °C"}],
        ("assistant: tool calls",),
    ),
    "calls": (
        WITH_CALLS,
        [ASKED, assistant(None, tool_calls=call({"city": 'Paris "é"', "days": 2, "exact": True})), user("Thanks")],
        (),
    ),
    "calls as JSON text": (
        WITH_CALLS,
        [ASKED, assistant("", tool_calls=call('{"city": "Paris", "why": "\\u00e9\\n"}')), user("Thanks")],
        (),
    ),
    "calls as XML": (XML_CALLS, [ASKED, assistant("", tool_calls=call({"city": "Paris", "at": [1.5]}))], ()),
    "tools left out": (
        PLAIN,
        [{"role": "tools", "content": None, "tools": [{"type": "function", "function": {"name": "weather"}}]}, *CHAT],
        ("tools",),
    ),
    "tools": (
        "{{ tools | tojson }}" + PLAIN,
        [{"role": "tools", "content": None, "tools": [{"name": "weather", "description": "Now's", "x": ""}]}, *CHAT],
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("template", "messages", "expected"), CASES.values(), ids=list(CASES))
def test_what_a_template_leaves_out_is_named(template, messages, expected):
    text = with_template(template).render(messages)
    assert find_left_out(messages, text) == expected, text


def test_report_counts_comparisons_and_gives_the_first_of_each_kind():
    report = TemplateReport()
    assert report.describe_left_out() == ""
    for line, kinds in enumerate([(), ("system: the whole message",), ("tools", "system: the whole message")], 1):
        part = TemplateReport()
        part.count_rendered(f"a.jsonl:{line}", set(kinds))
        report.merge_left_out(part)
    assert report.describe_left_out() == (
        "the chat template leaves out content of 2 of 3 comparisons: system: the whole message (2; first: a.jsonl:2), "
        "tools (1; first: a.jsonl:3)"
    )


@pytest.mark.parametrize(
    ("template", "added"),
    [
        (byte_level().chat_template, "nothing"),
        ("<|im_start|>system\nYou are kind.<|im_end|>\n" + byte_level().chat_template,
         "'You are kind.' (system message)"),
        (LLAMA, "'Today Date: 26 Jul 2024' (system message), the date 2024-07-26"),
        (THINKING.replace("{{ m.content.split", "{{ '<think>\n\n</think>\n\n' + m.content.split"),
         "'<think> </think>' (assistant message)"),
        ("A chat. {{ 'USER: ' + messages[0].content + ' ASSISTANT: ' + messages[1].content }}", "'A chat. USER:'"),
    ],
)  # fmt: skip
def test_additions_of_a_template_are_described(template, added):
    rendered, line = with_template(template).describe_template()
    assert line == f"the chat template adds of its own: {added}"
    assert rendered.startswith("chat template: ")
    assert "{user}" in rendered
    assert "\n" not in rendered


def test_a_template_that_refuses_the_two_messages_is_not_shown():
    (line,) = with_template("{{ raise_exception('no') }}").describe_template()
    assert line == "chat template: not shown (the chat template fails on these messages (no))"


def test_a_role_that_the_template_does_not_know_is_an_error():
    messages = [{"role": "critic", "content": "Hi"}]
    with pytest.raises(InputError) as error:
        with_template(PLAIN).render(messages)
    assert (
        "a message has the role 'critic', which the chat template does not know; expected system, user, assist"
        in str(error.value)
    )
    knowing = PLAIN.replace("m.role +", "('Critic' if m.role == 'critic' else m.role) +")
    assert with_template(knowing).render(messages) == "Critic: Hi\n"


def test_a_tokenizer_with_several_templates_renders_with_the_default_one():
    named = {"default": PLAIN, "tool_use": "{{ tools | tojson }}" + PLAIN}
    assert with_template(named).render(CHAT) == "user: Hi\nassistant: Hello\n"
    with pytest.raises(InputError, match="multiple chat templates with no default"):
        with_template({"a": PLAIN, "b": PLAIN}).render(CHAT)
