"""The HTML frame and the style sheet that the report and the server's pages share."""

import functools
import html
import importlib.resources


@functools.cache
def style_sheet() -> str:
    """Returns the CSS: light and dark colors, tables, code, figures; no scrolling to the side from 390 pixels on."""
    return (importlib.resources.files("rmjax.core") / "style.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """Returns a self-contained HTML document; `title` is plain text, `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style_sheet()}</style></head><body>{body}</body></html>\n"
    )
