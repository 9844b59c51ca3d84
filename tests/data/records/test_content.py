"""Content of values: prose against identifiers, conversations in any layout."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.data.records.content import CONVERSATION, MEDIA, TEXT, content_kind, has_user_turn, is_prose, strings, turns

PROSE = [
    "Tell me a story about a fox",
    "What is 2+2?",
    "Compute 17 * 23.",
    "Find $x$ such that $x^2 = 4$",
    "Wie spät ist es in Wien",
    "請寫一首關於春天的詩",
    "你好吗\uff1f",
    "春について短い詩を書いて",
    "ช่วยเขียนบทกวีสั้น",
    "오늘 날씨가 어때 친구야",
    "नमस्ते दुनिया कैसे हो",
    "مرحبا كيف حالك اليوم",
    "Расскажи мне сказку",
    "First line of it\nand the second",
]
NOT_PROSE = [
    "",
    "  \n",
    "chat",
    "chat_hard",
    "Open QA",
    "创意写作",
    "model_a",
    "A>B",
    "tie (bothbad)",
    "meta-llama/Llama-2-7b-chat-hf",
    "Llama 3.1 8B Instruct",
    "Claude 3 Opus",
    "John Smith",
    "user@mail.example",
    "https://example.org/a/b?q=c d",
    "/data/train 01.jsonl",
    "2024-05-01T10:00:00Z",
    "2024-05-01 10:00:00",
    "Mon Jan 05 10:00:00 GMT 2024",
    "d41d8cd98f00b204e9800998ecf8427e",
    "550e8400-e29b-41d4-a716-446655440000",
    "0.1 0.2 0.3",
    "v1.2.3-rc1",
    "en",
    "CC-BY-4.0",
]


@pytest.mark.parametrize("text", PROSE)
def test_written_language_is_prose(text):
    assert is_prose(text)
    assert content_kind(text) == TEXT
    assert content_kind(["3", text]) == TEXT
    assert content_kind({"score": 1, "notes": [{"comment": text}]}) == TEXT


@pytest.mark.parametrize("text", NOT_PROSE)
def test_identifiers_names_labels_and_times_are_not_prose(text):
    assert not is_prose(text)
    assert content_kind(text) == ""
    assert content_kind([text, {"key": text}]) == ""


ROLES = [("user", "assistant"), ("human", "gpt"), ("Human", "Assistant"), ("prompter", "bot"), ("USER", "model")]
KEYS = [("role", "content"), ("from", "value"), ("speaker", "text"), ("author", "message")]
WRAPPINGS = {
    "bare": lambda messages: messages,
    "json": json.dumps,
    "object": lambda messages: {"id": 3, "dialog": messages},
    "json in an object": lambda messages: {"raw": json.dumps(messages)},
    "list of conversations": lambda messages: [messages, messages],
    "first message": lambda messages: messages[0],
    "one message": lambda messages: messages[:1],
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("keys", KEYS, ids="-".join)
@pytest.mark.parametrize("roles", ROLES, ids="-".join)
def test_messages_of_any_layout_are_a_conversation(roles, keys, wrap):
    messages = [dict(zip(keys, (role, text), strict=True)) for role, text in zip(roles, ("Hi", "Yo"), strict=True)]
    value = wrap(messages)
    assert content_kind(value) == CONVERSATION
    assert "Hi" in strings(value)
    assert not {*roles, *keys} & set(strings(value))


@pytest.mark.parametrize(
    "value",
    [
        [{"user": "How are you today?", "assistant": "Well."}],
        [["What is it like there?", "It is nice."], ["Why?", "Because."]],
        "\n\nHuman: Hi\n\nAssistant: Hello",
        "User: Hi\nBot: Hello",
        "A chat. USER: Hi ASSISTANT: Hello",
        "### Human: Hi ### Assistant: Hello",
        "[INST] Hi [/INST] Hello",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|start_header_id|>assistant<|end_header_id|>\n\nHello",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello",
        "<|user|>\nHi\n<|assistant|>\nHello",
        "<|USER_TOKEN|>Hi<|CHATBOT_TOKEN|>Hello",
        "<\uff5cUser\uff5c>Hi<\uff5cAssistant\uff5c>Hello",
    ],
)
def test_turns_of_other_forms_are_a_conversation(value):
    assert content_kind(value) == CONVERSATION
    assert not isinstance(value, str) or has_user_turn(value)


def test_turns_of_a_transcript_are_its_texts():
    assert turns("\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: Bye") == ["Hi", "Hello\nyou", "Bye"]
    assert turns("User: no second speaker") == ["User: no second speaker"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"model": "gpt-4", "user": "bob", "system": "linux"}, ""),
        ({"type": "function", "function": {"name": "f"}}, ""),
        ([{"annotator": "human", "comment": "It is a good answer."}], TEXT),
        ([[0, 3], [1, 2]], ""),
        ([["a", "b"]], ""),
        ("The user: a person who asks.", TEXT),
        ("A user error in the human: model.", TEXT),
        ([], ""), ({}, ""), ("[]", ""), ("{}", ""), ("[null]", ""), ([None, ""], ""), (None, ""), (3.5, ""), (True, ""),
        ("{not json at all", TEXT),
    ],
)  # fmt: skip
def test_what_only_looks_like_turns_is_not_a_conversation(value, kind):
    assert content_kind(value) == kind


MEDIA_VALUES = [
    b"\x89PNG",
    "a.png",
    "my cats/1 2.JPG",
    "https://example.org/v.mp4?sig=a%20b#t",
    "data:image/png;base64,AAAA",
    "data:audio/wav;base64,AAAA",
    "/9j/" + "A" * 80,
    {"bytes": b"\xff\xd8", "path": None},
    {"bytes": None, "path": "a.webp"},
    {"array": [0.0, 0.5], "path": None, "sampling_rate": 16000},
    {"type": "image_url", "image_url": {"url": "https://example.org/a.jpeg"}},
    {"caption": "A cat on a mat.", "file": "a.mp3"},
]


@pytest.mark.parametrize("value", MEDIA_VALUES, ids=repr)
def test_images_audio_and_video_are_media(value):
    assert content_kind(value) == MEDIA
    assert content_kind([value]) == MEDIA
    assert content_kind([None, [value, "An image of a cat."]]) == MEDIA


def test_an_image_that_datasets_decoded_is_media():
    image = pytest.importorskip("PIL.Image").new("RGB", (2, 2))
    assert content_kind([image]) == MEDIA


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("Please draw a cat and save it as cat.png", TEXT),
        ("Describe it:\na.png", ""),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], CONVERSATION),
        (b"", ""), ({"bytes": b"", "path": None}, ""), ({"bytes": None, "path": None}, ""), ([""], ""),
        ({"array": [], "sampling_rate": 16000}, ""), ("png", ""), (".png.txt", ""), ("data.jsonl", ""),
        ("iVBORw0KGgo", ""), ("data:text/plain,Hi", ""),
    ],
)  # fmt: skip
def test_empty_media_and_texts_about_files_are_not_media(value, kind):
    assert content_kind(value) == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_any_value_has_a_kind_and_its_texts_are_stripped_and_not_empty(value):
    kind = content_kind(value)
    assert kind in (CONVERSATION, MEDIA, TEXT, "")
    found = list(strings(value))
    assert all(text and text == text.strip() for text in found)
    assert found or kind == ""


def test_deeply_nested_values_end():
    value = "Tell me a story"
    for _ in range(2000):
        value = [value]
    assert content_kind(value) == ""
    assert list(strings(value)) == []
