"""The metrics that docs/glossary.md defines; tests compare the names that programs produce."""

import functools
import re

from rmjax.evaluation.suites import SUITES
from tests.conftest import ROOT

_ANY = "[^/]+"  # what capitals in a name stand for
_SECTIONS = [f"{suite.name}/{name}" for suite in SUITES.values() for name in suite.sections]


@functools.cache
def _definitions():
    """Patterns of the entries, without those that are made of other entries."""
    section = (ROOT / "docs" / "glossary.md").read_text().partition("\n## Metrics\n")[2]
    rows = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(.+?)`", row)}
    assert len(names) > 80  # the tables were found
    made_of_others = {"SUBSET/NAME", "compare/NAME", "compare/NAME_other", "compare/NAME_difference"}
    assert names >= made_of_others
    entries = sorted(names - made_of_others - {"SUITE/SECTION"})
    return [re.compile(pattern) for pattern in (*_SECTIONS, *(re.sub("[A-Z]+", _ANY, name) for name in entries))]


def undefined(names, *, subsets=()):
    """Returns the names without an entry; `subsets` are those of the data, whose metrics are `SUBSET/NAME`."""

    def defined(name):
        name = re.sub("_(low|high)$", "", name)
        if any(pattern.fullmatch(name) for pattern in _definitions()):
            return True
        if name.startswith("compare/"):
            return defined(re.sub("_(other|difference)$", "", name.removeprefix("compare/")))
        return any(name.startswith(f"{subset}/") and defined(name.removeprefix(f"{subset}/")) for subset in subsets)

    return [name for name in names if not defined(name)]
