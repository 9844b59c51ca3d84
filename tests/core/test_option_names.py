"""Configuration keys in messages are replaced by flags."""

import pytest

from rmjax.core.option_names import rename_options


@pytest.mark.parametrize(
    ("message", "renamed"),
    [
        ("config.data.format is 'x'", "--format is 'x'"),
        ("a.jsonl:1: bad (set data.format = pairs)", "a.jsonl:1: bad (set --format=pairs)"),
        ("data.ties = half", "config.data.ties = half"),
        ("data.format.jsonl, /data/data.format, data.formats", "data.format.jsonl, /data/data.format, data.formats"),
        ("add --config.data.format=x", "add --config.data.format=x"),
    ],
)
def test_configuration_keys_in_messages_are_replaced_by_flags(message, renamed):
    assert rename_options(message, {"data.format": "--format"}) == renamed
