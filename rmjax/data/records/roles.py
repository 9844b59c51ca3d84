"""Roles of chat messages: those that chat templates know, and the other names that published data gives them."""

from rmjax.data.schema import Message

ROLES = ("system", "user", "assistant", "tool", "developer", "function")  # that chat templates are written for
_OTHER_NAMES = {  # in lower case
    "human": "user",
    "prompter": "user",  # OpenAssistant
    "gpt": "assistant",  # ShareGPT
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",  # Gemma
}
_OBSERVATION = "observation"  # a tool's result in LLaMA-Factory's ShareGPT files


def normalize_role(role: str) -> str:
    """Returns the role under the name that chat templates know; another role is returned as it is.

    >>> [normalize_role(role) for role in ("Human", "gpt", " ASSISTANT", "critic")]
    ['user', 'assistant', 'assistant', 'critic']
    """
    name = role.strip().lower()
    name = _OTHER_NAMES.get(name, name)
    return name if name in ROLES else role


def with_role(message: Message) -> Message:
    """Returns a message with a normalized role, also if it has `from` and `value` (ShareGPT) for role and content.

    >>> with_role({"from": "human", "value": "Hi"})
    {'role': 'user', 'content': 'Hi'}
    """
    role, speaker = message.get("role"), message.get("from")
    if isinstance(role, str):
        return message | {"role": normalize_role(role)}
    if role is None and isinstance(speaker, str):
        role = "tool" if speaker == _OBSERVATION else normalize_role(speaker)
        content = message["value"] if message.get("value") is not None else message.get("content")
        others = {key: value for key, value in message.items() if key not in ("role", "content", "from", "value")}
        return {"role": role, "content": content} | others
    return message
