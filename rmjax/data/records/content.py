"""What a value holds: a conversation, media, text, or neither (numbers, identifiers, names, labels).

Decided by the value alone, not by the name of its field.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from rmjax.data.records.roles import ROLES, normalize_role

CONVERSATION, MEDIA, TEXT = "conversation", "media", "text"

_PROSE_HEAD = 160  # characters of a text that tell whether it is prose
_PROSE_PARTS = 12  # parts between spaces, likewise
_TURNS_HEAD = 2000  # characters in which a transcript has its first turns
_MAX_DEPTH = 6  # of nested lists and objects that are examined
_CONTENT = ("content", "value", "text", "message")  # keys of a message's text
# A letter, then nothing that identifiers and addresses have.
_WORD = re.compile(r"[^\W\d_][^\d_/\\@=:.#|<>{}\[\]]*")
_IDENTIFIER = re.compile(r"[\w.:/-]{0,80}", re.ASCII)
_PUNCTUATION = "\"'.,;:!?()[]{}*$\u2018\u2019\u201c\u201d\xab\xbb\xbf\xa1\u2026"
# Thai to Khmer, Japanese, and Chinese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
# Also an ellipsis, and the ends of sentences in Chinese, Hindi and Arabic.
_SENTENCE_ENDS = (".", "?", "!", "\u2026", "\u3002", "\uff1f", "\uff01", "\u0964", "\u061f")
# A turn's speaker in a transcript or in a rendered chat template: "\n\nHuman:", "USER:", "<|im_start|>user", "[INST]".
_TURN = r"(?:^|[\n>|\uff5c#*]|\[/?|(?-i:(?<= )(?=[A-Z]{4})))[ ]*(?:%s)(?:_token)?[ ]*[:|>\]\n<\uff5c*]"
_USERS = ("human", "user", "inst", "instruction", "question", "prompter")
_USER_TURN = re.compile(_TURN % "|".join(_USERS), re.IGNORECASE)
_ASSISTANT_TURN = re.compile(_TURN % "assistant|gpt|chatgpt|bot|chatbot|model|inst", re.IGNORECASE)
# The end of the path or address of an image, audio or video.
_MEDIA_END = re.compile(
    r"\.(?:png|jpe?g|gif|webp|bmp|tiff?|svg|avif|heic|wav|mp3|flac|ogg|opus|m4a|aac|mp4|m4v|webm|mov|mkv|avi|mpe?g)"
    r"(?:[?#]\S*)?$",
    re.IGNORECASE,
)
_MEDIA_DATA = re.compile(
    r"data:(?:image|audio|video)/|(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/=\r\n]{64}"
)  # base64
_LONGEST_ADDRESS = 2048  # characters
_MEDIA_MODULES = ("PIL", "torchcodec", "datasets")  # of the objects to which `datasets` decodes images, audio and video
_TAG = re.compile(r"<[^<>\n]{1,40}>|\[/?INST\]")  # of a chat template


def content_kind(value: Any, depth: int = 0) -> str:
    """Returns `conversation`, `media`, `text`, or "" for a value that holds none of them.

    A conversation is a message, a list of messages or of [question, answer], a transcript, or a list or object that
    has one. Media are bytes, `data:` URIs, paths or addresses with the ending of an image, audio or video, objects to
    which `datasets` decodes them, or a list or object that has one. Text is prose (`is_prose`), or a list or object
    that has some.

    >>> content_kind([{"from": "human", "value": "Hi"}]), content_kind(["Say hello to her."]), content_kind("gpt-4o")
    ('conversation', 'text', '')
    >>> content_kind(["images/1.png"])
    'media'
    """
    if isinstance(value, str):
        if _is_media(value):
            return MEDIA
        if _IDENTIFIER.fullmatch(value):  # the most frequent case, and the fastest
            return ""
        if (decoded := decode(value)) is not value:
            return content_kind(decoded, depth + 1)
        return CONVERSATION if is_transcript(value) else TEXT if is_prose(value) else ""
    if not isinstance(value, list | dict) or depth > _MAX_DEPTH:
        is_media = isinstance(value, bytes) or type(value).__module__.partition(".")[0] in _MEDIA_MODULES
        return MEDIA if is_media and value else ""
    if isinstance(value, dict) and _is_message(value):
        return CONVERSATION
    if isinstance(value, dict) and value.get("array") and value.get("sampling_rate"):  # audio that `datasets` decoded
        return MEDIA
    kinds = {content_kind(entry, depth + 1) for entry in (value if isinstance(value, list) else value.values())}
    if CONVERSATION in kinds or (TEXT in kinds and is_dialog(value)):
        return CONVERSATION
    return next((kind for kind in (MEDIA, TEXT) if kind in kinds), "")


def decode(value: Any) -> Any:
    """Returns the list or object of a JSON text, else the value."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def strings(value: Any, depth: int = 0) -> Iterator[str]:
    """Yields the texts of a value that are not empty, stripped; of a message its content, and not its role.

    >>> list(strings([{"role": "user", "content": "Hi "}, {"role": "assistant", "content": [{"text": "Hello"}]}]))
    ['Hi', 'Hello']
    """
    decoded = decode(value)
    if isinstance(decoded, str):
        if text := decoded.strip():
            yield text
    elif depth <= _MAX_DEPTH and isinstance(decoded, list | dict):
        entries = decoded
        if isinstance(decoded, dict):
            content = [decoded[key] for key in _CONTENT if key in decoded]
            entries = content or list(decoded.values())
        for entry in entries:
            yield from strings(entry, depth + 1)


def is_prose(text: str) -> bool:
    """Whether a text is written language: three words, most of its parts being words, or a sentence.

    Identifiers, addresses, hashes, file names, times, and names of one or two words are not. In scripts without spaces,
    two characters count as a word.

    >>> [is_prose(text) for text in ("Say it again", "What is 2+2?", "你会说中文吗", "Qwen2.5 7B Instruct", "a/b.txt")]
    [True, True, True, False, False]
    """
    text = text.strip()[:_PROSE_HEAD]
    parts = text.split(None, _PROSE_PARTS)[:_PROSE_PARTS]
    spaced = parts if text.isascii() else [part for part in parts if not _UNSPACED.search(part)]
    unspaced = 0 if text.isascii() else len(_UNSPACED.findall(text)) // 2
    words = unspaced + sum(_WORD.fullmatch(part.strip(_PUNCTUATION)) is not None for part in spaced)
    if text.endswith(_SENTENCE_ENDS) and words and (len(parts) > 1 or unspaced):
        return True
    return words >= 3 and 2 * words > len(parts)


def has_user_turn(text: str) -> bool:
    r"""Whether a text marks a user's turn, as transcripts and rendered chat templates do.

    >>> [has_user_turn(text) for text in ("Human: Hi\n\nAssistant: Hello", "<|im_start|>user\nHi", "user error")]
    [True, True, False]
    """
    head = text[:_TURNS_HEAD]
    lower = head.lower()  # most texts name no speaker, which is found faster without the expression
    return any(user in lower for user in _USERS) and _USER_TURN.search(head) is not None


def is_transcript(text: str) -> bool:
    """Whether a text marks a user's and an assistant's turns."""
    return has_user_turn(text) and _ASSISTANT_TURN.search(text, 0, _TURNS_HEAD) is not None


def turns(text: str) -> list[str]:
    """Returns the texts between the speakers and tags of a transcript, stripped; of another text, itself."""
    if not is_transcript(text):
        return [text]
    parts = [f"{part}\n" for part in _TAG.split(text)]
    for speaker in (_USER_TURN, _ASSISTANT_TURN):
        parts = [part for whole in parts for part in speaker.split(whole)]
    return [stripped for part in parts if (stripped := part.strip(" \n#"))]


def _is_media(text: str) -> bool:
    """Whether a text is the path, the address or the data of an image, audio or video."""
    if _MEDIA_DATA.match(text):
        return True
    is_one_line = len(text) <= _LONGEST_ADDRESS and "." in text and "\n" not in text
    return is_one_line and _MEDIA_END.search(text) is not None and not is_prose(text)


def _is_message(value: dict[str, Any]) -> bool:
    """Whether an object has a speaker and what it says: as values of two keys, or the speakers as keys.

    The values may be lists, one of the speakers and one of the texts, as older versions of `datasets` store messages.
    """
    if texts := [value[key] for key in _CONTENT if value.get(key)]:
        in_lists = all(isinstance(text, list) for text in texts)
        names = [entry[0] if in_lists and isinstance(entry, list) and entry else entry for entry in value.values()]
        return any(isinstance(name, str) and normalize_role(name) in ROLES for name in names)
    speakers = {normalize_role(key) for key, entry in value.items() if isinstance(entry, str) and entry.strip()}
    return {"user", "assistant"} <= speakers and any(map(is_prose, strings(value)))


def is_dialog(value: Any) -> bool:
    """Whether a value is a list of [question, answer], as alpaca's `history`."""
    return isinstance(value, list) and all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry) for entry in value
    )
