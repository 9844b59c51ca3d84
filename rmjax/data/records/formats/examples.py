"""An example record per format, which errors show, and the formats closest to an unknown record."""

import difflib
import json
from collections.abc import Iterable

from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record

_USER = {"role": "user", "content": "Hi"}
_TURN = {"role": "assistant", "content": "Hello"}
_STEPS = [{"completions": [{"text": "2 + 2 = 4.", "rating": 1}], "chosen_completion": 0}]

# Of records that are pairs of lines, one line.
EXAMPLES: dict[str, Record] = {
    "pairs": {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    "preference_strength": {"prompt": "Hi", "response_1": "Hello", "response_2": "No", "preference_strength": -2},
    "alpaca": {"instruction": "Translate", "input": "Hallo", "history": [], "chosen": "Hello", "rejected": "No"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "No"},
    },
    "ms_swift": {"messages": [_USER, _TURN], "rejected_response": "No"},
    "openai_preference": {
        "input": {"messages": [_USER]},
        "preferred_output": [_TURN],
        "non_preferred_output": [_TURN | {"content": "No"}],
    },
    "arena": {"prompt": "Hi", "response_a": "Hello", "response_b": "No", "winner": "model_a"},
    "pku_saferlhf": {
        "prompt": "Hi",
        "response_0": "Hello",
        "response_1": "No",
        "better_response_id": 0,
        "safer_response_id": 0,
    },
    "shp": {"history": "Hi", "human_ref_A": "Hello", "human_ref_B": "No", "labels": 1},
    "webgpt": {
        "question": {"full_text": "Hi?"},
        "answer_0": "Hello",
        "answer_1": "No",
        "score_0": 0.5,
        "score_1": -0.5,
    },
    "helpsteer3": {"context": [_USER], "response1": "Hello", "response2": "No", "overall_preference": -2},
    "judgebench": {"question": "Hi?", "response_A": "Hello", "response_B": "No", "label": "A>B"},
    "kwise": {"prompt": "Hi", "responses": ["Hello", "Hey", "No"], "ranks": [1, 2, 3]},
    "completions": {
        "instruction": "Hi",
        "completions": [{"response": "Hello", "overall_score": 8}, {"response": "No", "overall_score": 2}],
    },
    "nectar": {"prompt": "Hi", "answers": [{"answer": "Hello", "rank": 1}, {"answer": "No", "rank": 2}]},
    "ppe": {
        "prompt": "Hi",
        "response_1": "Hello",
        "response_2": "No",
        "response_3": "Hey",
        "scores": [True, False, True],
    },
    "rmb": {"conversation_input": [_USER], "chosen": {"answer": "Hello"}, "reject": {"answer": "No"}},
    "preference_graph": {
        "messages": [_USER],
        "responses": [{"response": "Hello"}, {"response": "No"}],
        "preference_graph": [{"chosen": {"response_id": 0}, "rejected": {"response_id": 1}}],
    },
    "ultrainteract": {"trajectory": [{"from": "user", "value": "Hi"}], "chosen": "Hello", "rejected": "No"},
    "oasst": {
        "message_tree_id": "1",
        "prompt": {
            "role": "prompter",
            "text": "Hi",
            "replies": [
                {"role": "assistant", "text": "Hello", "rank": 0, "replies": []},
                {"role": "assistant", "text": "No", "rank": 1, "replies": []},
            ],
        },
    },
    "score": {"prompt": "Hi", "response": "Hello", "score": 0.8},
    "regression": {"prompt": "Hi", "response": "Hello", "labels": {"helpfulness": 4}},
    "process": {"prompt": "2 + 2?", "completions": ["2 + 2 = 4.", "So 5."], "labels": [True, False]},
    "processbench": {"problem": "2 + 2?", "steps": ["2 + 2 = 4.", "So 5."], "label": 1},
    "prmbench": {
        "modified_question": "2 + 2?",
        "modified_process": ["2 + 2 = 4.", "So 5."],
        "error_steps": [2],
        "classification": "step_contradiction",
    },
    "prm800k": {"question": {"problem": "2 + 2?"}, "label": {"steps": _STEPS}},
    "math_shepherd": {"input": "2 + 2? Step 1: 4 ки", "label": "2 + 2? Step 1: 4 +"},
    "nemo_binary": {"text": "User: Hi\nAssistant: Hello"},
    "nemo_regression": {"text": "User: Hi\nAssistant: Hello", "label": [4, 3]},
    "nemo_preference": {"text": "User: Hi\nAssistant: Hello", "label": [-2, -100]},
    "text": {"text": "User: Hi\nAssistant: Hello"},
    "messages": {"messages": [_USER, _TURN]},
}
_SHOWN = 3  # formats in the error of an unknown record
_SIMILAR = 0.6  # ratio of `difflib` from which on a field may be one of a format under another name
_RELATED = 0.8  # similarity of two names of which one contains the other, and of two names of prompts
_PROMPTS = ("prompt", "question", "instruction", "query", "context", "history")


def example_line(format: str) -> str:
    """Returns a format's example record as a line of JSON."""
    return json.dumps(EXAMPLES[format], ensure_ascii=False)


def missing(field: str, format: str) -> BadField:
    """Returns the error of a record of `format` that lacks a field."""
    return BadField(f"no {field!r}; expected a record such as {example_line(format)}", f"no {field!r}")


def closest_formats(keys: Iterable[str], formats: Iterable[str]) -> list[str]:
    """Returns the names of the formats, of those given, whose examples have the fields most similar to `keys`.

    >>> closest_formats(["question", "human_ref_a", "human_ref_b", "labels"], EXAMPLES)[0]
    'shp'
    """
    keys = [key.lower() for key in keys]

    def likeness(format: str) -> float:
        """Returns the sum of the similarities of the format's fields to the keys, per field of either."""
        fields = [field.lower() for field in EXAMPLES[format]]
        best = [max((_similarity(key, field) for key in keys), default=0.0) for field in fields]
        return sum(best) / max(len(fields), len(keys))

    return sorted(formats, key=likeness, reverse=True)[:_SHOWN]


def _similarity(key: str, field: str) -> float:
    ratio = difflib.SequenceMatcher(None, key, field).ratio()
    if key in field or field in key or (key in _PROMPTS and field in _PROMPTS):
        return max(ratio, _RELATED)
    return ratio if ratio >= _SIMILAR else 0.0
