"""Numbers with their nouns, for messages."""


def count_of(count: int, noun: str, plural: str = "") -> str:
    """Returns a count with its noun; the plural is `plural`, or `noun` with an s.

    >>> count_of(1, "record"), count_of(2500, "record"), count_of(0, "entry", "entries")
    ('1 record', '2,500 records', '0 entries')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
