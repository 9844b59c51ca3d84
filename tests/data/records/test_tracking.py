"""Tracked records and the renaming of fields."""

import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.fields import BadField
from rmjax.data.records.tracking import Columns, TrackedRecord

ROW = {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("use", "unread"),
    [
        (lambda r: r["a"], "bc"),
        (lambda r: r.get("a"), "bc"),
        (lambda r: r.get("x", 5), "abc"),
        (lambda r: r.pop("a"), "bc"),
        (lambda r: list(r.items()), ""),
        (lambda r: list(r.values()), ""),
        (lambda r: [name for name in r if name in r], "abc"),
        (lambda r: dict(r), "abc"),
        (lambda r: r | {"x": 1}, "abc"),
        (lambda r: [r["a"], r["b"], r["c"]], ""),
    ],
)
def test_fields_that_are_read_are_noted(use, unread):
    record = TrackedRecord(dict(ROW))
    use(record)
    assert "".join(record.unread()) == unread


def test_reading_by_a_match_statement_is_noted():
    record = TrackedRecord(dict(ROW))
    match record:
        case {"a": 1, "b": found}:
            assert found == 2
    assert record.unread() == {"c": 3}


@pytest.mark.parametrize(
    ("columns", "record", "renamed"),
    [
        ((), ROW, ROW),
        (("x=y",), ROW, ROW),
        (("a=x",), {"b": 2, "c": 3, "x": 1}, {"b": 2, "c": 3, "x": 1}),
        (("a=b",), {"c": 3, "b": 1}, {"c": 3, "b": 1}),
        (("a=b", "b=a"), {"c": 3, "b": 1, "a": 2}, {"c": 3, "b": 1, "a": 2}),
        (("a=_", "c=_"), {"b": 2}, ROW),
    ],
)
def test_columns_rename_and_leave_out(columns, record, renamed):
    found = Columns(columns).apply(ROW)
    assert found == record
    assert found.renamed == renamed
    assert found.row == ROW


def test_unread_fields_have_the_names_of_the_source():
    found = Columns(("a=x", "b=_")).apply(ROW)
    assert found.unread() == {"a": 1, "c": 3}
    assert found["x"] == 1
    assert found.unread() == {"c": 3}
    assert found.sources("x") == ("a",)


def test_a_field_replaced_by_another_is_unread():
    found = Columns(("a=b",)).apply(ROW)
    assert found["b"] == 1
    assert found.unread() == {"b": 2, "c": 3}
    assert Columns(("a=b", "b=a")).apply(ROW).unread() == ROW


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        (("p", "q"), "p\nq"),
        (("p", ""), "p"),
        ((None, "q"), "q"),
        (("", None), ""),
        (([USER], "q"), [USER, USER]),
        (("q", [USER]), [USER, USER]),
    ],
)
def test_fields_of_one_new_name_are_joined_in_the_order_of_the_columns(values, joined):
    row = {"second": values[1], "first": values[0]}
    found = Columns(("first=prompt", "second=prompt")).apply(row)
    assert found == {"prompt": joined}
    assert found["prompt"] == joined
    assert found.unread() == {}
    assert found.sources("prompt") == ("first", "second")


def test_a_field_can_keep_its_name_in_a_join():
    found = Columns(("context=prompt", "prompt=prompt")).apply({"prompt": "p", "context": "c", "chosen": "a"})
    assert found == {"chosen": "a", "prompt": "c\np"}


def test_other_columns_are_refused():
    for entry in ("a", "=b", "a="):
        with pytest.raises(InputError, match=r"config.data.columns holds .*; expected old=new"):
            Columns((entry,))
    with pytest.raises(BadField, match="a and b cannot be joined"):
        Columns(("a=x", "b=x")).apply(ROW)
