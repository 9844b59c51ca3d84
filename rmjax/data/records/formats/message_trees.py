"""Formats whose records are parts of trees of messages: OpenAssistant (OASST), and UltraInteract."""

from collections.abc import Container, Iterable, Iterator
from typing import Any

from rmjax.data.records.conversations import join_conversation
from rmjax.data.records.fields import BadField, number, text, unexpected
from rmjax.data.records.formats.examples import missing
from rmjax.data.records.formats.preferences import compare_sides, with_subset
from rmjax.data.records.formats.turns import chat_messages
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.roles import normalize_role
from rmjax.data.records.sources import BadRecord, Entry
from rmjax.data.schema import Comparison, Message, Record

_Row = tuple[str, Record]  # `path:line`, and a flat message
_NO_REPLY = "no message of a user has a reply"
_UNRANKED = "fewer than two of a message's replies have a rank, so there is no preference"


def parse_ultrainteract(where: str, record: Record, options: ReadOptions) -> Comparison:
    """UltraInteract: `trajectory`, the turns up to the user's last, and the next actions `chosen` and `rejected`.

    Its `task` is the subset.
    """
    if record.get("trajectory") is None:
        raise missing("trajectory", "ultrainteract")
    prompt = chat_messages(record.get("trajectory"), "trajectory")
    chosen, rejected = ([join_conversation(prompt, record.get(key), key, options)] for key in ("chosen", "rejected"))
    return with_subset(compare_sides(where, record, options, chosen, rejected), "task")


def is_oasst(record: Record, following: Record | None, options: ReadOptions) -> bool:
    """Whether a record is a tree of OpenAssistant's messages, or one of its flat messages."""
    prompt = record.get("prompt")
    return {"message_id", "text", "role"} <= record.keys() or (isinstance(prompt, dict) and "text" in prompt)


def expand_oasst(entries: Iterable[Entry], options: ReadOptions) -> Iterator[Entry]:
    """Yields a K-wise record for each user message with replies, of OpenAssistant's trees or of its flat messages.

    A tree is one record, with a message `prompt`, which has `text`, `role` and nested `replies`. Flat messages are one
    record each, with `message_id` and `parent_id`; they are held until the source ends, as their order is free. Rank 0
    is the best reply. Replies without a rank are left out of labeled data; a message with fewer than two ranked replies
    gives a BadRecord that is `tied`.
    """
    flat: dict[str, _Row] = {}
    for where, record in entries:
        if isinstance(record, BadRecord):
            yield where, record
        elif "message_id" not in record:
            yield from _expand_tree(where, record, options)
        elif reason := _check_ids(record, flat):
            yield where, BadRecord(where, reason, record, reason.split(" ")[0] + " is not the identifier of a message")
        else:
            flat[record["message_id"]] = where, record
    siblings: dict[str | None, list[_Row]] = {}
    for entry in flat.values():
        siblings.setdefault(entry[1].get("parent_id"), []).append(entry)
    siblings.pop(None, None)  # the first messages of trees
    for replies in siblings.values():
        where, first = replies[0]
        try:
            conversation = _ancestors(flat, first)[:-1]
            if conversation[-1]["role"] == "user":
                yield where, _ranking(where, conversation, [reply for _, reply in replies], options)
        except BadField as error:
            yield where, BadRecord(where, str(error), first, error.kind)


def _check_ids(record: Record, flat: Container[Any]) -> str:
    """Returns why a flat message cannot be placed in a tree; "" if it can."""
    key, parent = record["message_id"], record.get("parent_id")
    if not isinstance(key, str) or key in flat:
        return f"message_id is {key!r:.60}; expected a text that no other message has"
    return "" if isinstance(parent, str | None) else f"parent_id is {parent!r:.60}; expected a message_id, or null"


def _expand_tree(where: str, record: Record, options: ReadOptions) -> Iterator[Entry]:
    found: list[Entry] = []
    unread: list[tuple[Any, list[Message]]] = [(record.get("prompt"), [])]  # messages with those before them
    try:
        while unread:
            node, before = unread.pop()
            conversation = [*before, _message(node)]
            replies = node.get("replies") or []
            if not isinstance(replies, list):
                raise unexpected(replies, "replies of a message", "a list of messages")
            if replies and conversation[-1]["role"] == "user":
                found.append((where, _ranking(where, conversation, replies, options)))
            unread += [(reply, conversation) for reply in reversed(replies)]
    except BadField as error:
        found = [(where, BadRecord(where, str(error), record, error.kind))]
    yield from found or [(where, BadRecord(where, _NO_REPLY, record, _NO_REPLY, tied=True))]


def _ancestors(flat: dict[str, _Row], message: Record) -> list[Message]:
    """Returns the conversation that ends with a message; raises BadField if the source lacks a message of it."""
    found: list[Message] = []
    while True:
        found.insert(0, _message(message))
        if (parent := message.get("parent_id")) is None:
            return found
        if parent not in flat or len(found) > len(flat):
            raise BadField(
                f"parent_id is {parent!r:.60}, and no first message of a tree leads there; give whole trees",
                "the source lacks the message parent_id",
            )
        message = flat[parent][1]


def _message(node: Any) -> Message:
    if not isinstance(node, dict):
        raise unexpected(node, "a message of the tree", "an object with text and role")
    role = normalize_role(text(node.get("role"), "role of a message"))
    return {"role": role, "content": text(node.get("text"), "text of a message")}


def _ranking(where: str, conversation: list[Message], replies: list[Any], options: ReadOptions) -> Record | BadRecord:
    """Returns the K-wise record of a message's replies; with labels, of the ranked ones."""
    messages = [_message(reply) for reply in replies]
    if not options.labeled:
        return {"prompt": conversation, "responses": [[message] for message in messages]}
    ranks = [reply.get("rank") for reply in replies]
    ranked = [
        (message, number(rank, "rank")) for message, rank in zip(messages, ranks, strict=True) if rank is not None
    ]
    if len(ranked) < 2:
        return BadRecord(where, _UNRANKED, {}, _UNRANKED, tied=True)
    return {
        "prompt": conversation,
        "responses": [[message] for message, _ in ranked],
        "ranks": [rank for _, rank in ranked],
    }
