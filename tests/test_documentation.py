"""The documentation is consistent with the code: links, navigation, commands, configuration keys, endpoints."""

import contextlib
import functools
import importlib
import inspect
import re
import shlex
import sys
import unicodedata

import pytest
import yaml
from absl.testing import flagsaver

import rmjax
from rmjax.core import config as configs
from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.serving.http import schemas
from rmjax.serving.http.server import HttpApplication
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "BUILD_NOTES.md")]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
PLACEHOLDERS = {"--config=CONFIG", "--config=FILE"}
KEYS = dict(configs.leaves(configs.default()))
SUFFIXES = ("json", "jsonl", "md", "npz", "py", "safetensors")
each_page = pytest.mark.parametrize("page", NAMES)


@functools.cache
def text_of(page):
    return (ROOT / page).read_text()


def blocks(page, *languages):
    """Returns the contents of the fenced blocks of a page in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


def prose(page):
    """Returns a page without fenced and indented blocks."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def commands(page):
    """Returns (program, flags) of each command `python -m rmjax.PROGRAM` of a page."""
    code = [*blocks(page, "", "bash", "sh"), *re.findall(r"(?:^    .*\n)+", text_of(page), re.MULTILINE)]
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        if match := re.search(r"python -m rmjax\.(\w+)((?: .*)?)$", line):
            words = shlex.split(match[2].translate({ord("["): " ", ord("]"): " "}), comments=True)
            yield match[1], [word for word in words if word not in ("…", "...")]


@functools.cache
def anchors(path):
    """Returns the anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.M
    )
    ascii_only = [unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() for text in headings]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in ascii_only}


def check_link(path, target):
    name, _, anchor = target.partition("#")
    found = (path.parent / name).resolve() if name else path
    assert found.exists(), f"{path}: {target} does not exist"
    if DOCS in path.parents:
        assert DOCS in found.parents, f"{path}: {target} is not part of the site"
    assert not anchor or anchor in anchors(found), f"{path}: {target} has no such heading"


@each_page
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            check_link(ROOT / page, target)


def test_every_page_is_in_the_navigation():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [name for child in (entry.values() if isinstance(entry, dict) else entry) for name in leaves(child)]

    listed = leaves(yaml.safe_load(text_of("mkdocs.yml"))["nav"])
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@each_page
def test_commands_have_flags_and_keys_that_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, words in commands(page):
        flags = ["--config=configs/binary.py" if word in PLACEHOLDERS else word for word in words]
        module = importlib.import_module(f"rmjax.{name}")
        monkeypatch.setattr(sys, "argv", [name, *flags])
        values = module.FLAGS.values
        with contextlib.ExitStack() as stack:
            stack.callback(flagsaver.restore_flag_values, flagsaver.save_flag_values(values), values)
            module.FLAGS.parse([name, *flags])


def test_a_command_with_an_unknown_flag_or_key_would_be_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    module = importlib.import_module("rmjax.train")
    for flag in ("--config.train.stepz=1", "--nonsense=1"):
        monkeypatch.setattr(sys, "argv", ["train", "--config=configs/binary.py", flag])
        with pytest.raises(InputError):
            module.FLAGS.parse(sys.argv)


@each_page
def test_configuration_keys_exist(page):
    sections = "|".join({key.partition(".")[0] for key in KEYS if "." in key})
    for key in re.findall(rf"`(?:config\.)?((?:{sections})\.\w+)(?: ?=[^`]*)?`", prose(page)):
        assert key in KEYS or key.endswith(SUFFIXES), f"{page}: there is no configuration key {key}"


@each_page
def test_python_blocks_compile(page):
    for code in blocks(page, "python"):
        compile(code, page, "exec")


def test_pages_that_errors_name_exist():
    pages = {
        page
        for path in (ROOT / "rmjax").rglob("*.py")
        for page in re.findall(r'page="?.*?"(docs/[^"]+)"', path.read_text())
    }
    pages |= set(re.findall(r'page = "(docs/[^"]+)"', (ROOT / "rmjax/core/memory.py").read_text()))
    assert len(pages) >= 8
    for page in pages:
        check_link(ROOT / "README.md", page)


def test_the_page_of_an_error_is_a_line_after_the_message(capsys):
    error = InputError("the message", page="docs/data.md")
    assert str(error) == "the message"
    with pytest.raises(SystemExit, match="2"):
        program._fail(str(error), notes=error.__notes__)
    assert capsys.readouterr().err == "error: the message\nsee docs/data.md\n"


def test_the_wire_reference_lists_the_endpoints_and_their_fields():
    page = text_of("docs/wire.md")
    documented = set(
        re.findall(r"`(GET|POST) (/[^`]*)`", page[page.index("## HTTP endpoints") : page.index("## How text")])
    )
    served = HttpApplication(ModelRegistry({}, {}), Security())._document["paths"]
    endpoints = {(method.upper(), path) for path, methods in served.items() for method in methods}
    assert documented == {(method, path) for method, path in endpoints if "/versions/" not in path}
    bodies = [kind for name, kind in vars(schemas).items() if name.endswith("Body")]
    fields = {
        field for body in [*bodies, schemas.TextPair, schemas.PipelineParameters] for field in body.__struct_fields__
    }
    assert not {field for field in fields if not re.search(rf'[`"]{field}[`"]', page)} - {"parameters", "ready"}


def test_arguments_in_the_table_of_functions_exist():
    rows = re.findall(r"^\| `(rmjax|model)\.(\w+)\(([^`]*)\)` \|", text_of("docs/python.md"), re.M)
    assert len(rows) > 8
    for owner, name, arguments in rows:
        function = getattr(rmjax if owner == "rmjax" else rmjax.Model, name)
        named = set(re.findall(r"(\w+)=", arguments))
        assert named <= set(inspect.signature(function).parameters), f"{owner}.{name}"
