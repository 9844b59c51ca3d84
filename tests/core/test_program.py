"""Flags, help and exit statuses of the programs."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAMS = sorted(path.stem for path in (ROOT / "rmjax").glob("*.py") if path.stem != "__init__")
SMALL_PROGRAM = '''
"""A program that imports nothing slow."""

import sys
from absl import flags
from rmjax.core import program
from rmjax.core.errors import InputError

_COUNT = flags.DEFINE_integer("count", 1, "A number.", lower_bound=0)
_KIND = flags.DEFINE_enum("kind", "a", ["a", "b"], "A choice.")


class Exit(flags.ArgumentParser):
    def parse(self, argument):
        sys.exit(int(argument))


flags.DEFINE(Exit(), "exit", None, "Exits while flags are parsed, as a config file may.")


def main(_):
    if _COUNT.value > 2:
        raise InputError(f"--count is {_COUNT.value}; expected at most 2")
    print(_KIND.value * _COUNT.value)


program.run(main)
'''


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def small_program(tmp_path):
    path = tmp_path / "small_program.py"
    path.write_text(SMALL_PROGRAM.lstrip())
    return path


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_each_program(program):
    result = run("-m", f"rmjax.{program}", "--help")
    assert result.returncode == 0, result.stderr
    assert f"python -m rmjax.{program}" in result.stdout
    assert "flags:" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("flags", ["--help", "-help", "-h", "--helpshort", "--helpfull", "--count=2 --help"])
def test_all_forms_of_help_exit_with_0(small_program, flags):
    result = run(small_program, *flags.split())
    assert result.returncode == 0
    assert "A program that imports nothing slow." in result.stdout
    assert "--count" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--nonsense",), "nonsense"),
        (("--count=-1",), "count"),
        (("--count=many",), "count"),
        (("--kind=c",), "kind"),
        (("stray",), "unexpected argument 'stray'; see --help"),
        (("--count=3",), "error: --count is 3; expected at most 2"),
    ],
)
def test_wrong_flags_and_inputs_print_one_line_and_exit_with_2(small_program, flags, message):
    result = run(small_program, *flags)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    assert line.startswith("error: ")
    assert message in line
    assert not result.stdout


def test_other_exit_statuses_are_kept(small_program):
    assert run(small_program, "--exit=3").returncode == 3
    result = run(small_program, "--kind=b", "--count=2")
    assert (result.returncode, result.stdout) == (0, "bb\n")
