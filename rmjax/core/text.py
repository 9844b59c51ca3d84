"""Numbers with their nouns and shortened texts, for messages and reports."""

_CHARACTERS = 2000  # of a text in a report


def count_of(count: int, noun: str, plural: str = "") -> str:
    """Returns a count with its noun; the plural is `plural`, or `noun` with an s.

    >>> count_of(1, "record"), count_of(2500, "record"), count_of(0, "entry", "entries")
    ('1 record', '2,500 records', '0 entries')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def shorten(text: str) -> str:
    """Returns a text of at most 2,000 characters, with a note on what is left out of its middle."""
    if len(text) <= _CHARACTERS:
        return text
    half = _CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
