"""Files that others read while they are written."""

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes beside and renames: a reader, or a kill, never meets half a file."""
    partial = path.with_suffix(".part")
    partial.write_text(text)
    os.replace(partial, path)
