"""Flags, help and exit statuses of the programs."""

import os
import signal
import subprocess
import sys

import pytest

from rmjax.core.program import Flags
from tests.conftest import ROOT

PROGRAMS = sorted(path.stem for path in (ROOT / "rmjax").glob("*.py") if not path.stem.startswith("_"))
SMALL_PROGRAM = '''
"""A program that imports nothing slow."""

import sys
from absl import flags
from rmjax.core import program, state_files
from rmjax.core.errors import InputError

FLAGS = program.Flags()
_COUNT = FLAGS.integer("count", 1, "A number.", lower_bound=0)
_KIND = FLAGS.enum("kind", "a", ["a", "b"], "A choice.")
_RATE = FLAGS.float("rate", 1.0, "Another number.")
_FAST = FLAGS.bool("fast", False, "A switch.")
_CONFIG = FLAGS.config("A configuration file.")


class Exit(flags.ArgumentParser):
    def parse(self, argument):
        sys.exit(int(argument))


flags.DEFINE(Exit(), "exit", None, "Exits while flags are parsed, as a config file may.", flag_values=FLAGS.values)


def main(_):
    if _COUNT.value > 2:
        raise InputError(f"data.train_limit is {_COUNT.value};\\n expected at most 2: data.ties = half")
    if _FAST.value:
        state_files.warn("checkpoints/6 is damaged")
    print(_KIND.value * _COUNT.value)


program.run(main, FLAGS, options={"data.train_limit": "--count"}, more_help=lambda: "More help.")
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
    assert "\nflags:\n  --count: A number." in result.stdout
    assert "undefok" not in result.stdout
    assert result.stdout.endswith("\n\nMore help.\n")
    assert not result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--nonsense",), "nonsense"),
        (("--count=-1",), "count"),
        (("--count=many",), "--count=many: expected an integer"),
        (("--rate=fast",), "--rate=fast: expected a number"),
        (("--fast=maybe",), "--fast=maybe: expected true or false"),
        (("--kind=c",), "kind"),
        (("stray",), "unexpected argument 'stray'; see --help"),
        (("--count=3",), "error: --count is 3; expected at most 2: config.data.ties = half"),
        (("--config.train.steps=3",), "error: --config.train.steps: --config=FILE is missing"),
        (("--config.train.steps=3", "--config=configs/binary.py"), "comes before --config=FILE; put it after"),
        (("--config=configs/missing.py",), "--config=configs/missing.py: no such file; there are configs/binary.py"),
        (("--config=configs/binary.py", "--config.train.steps=many"), "--config.train.steps=many: expected an integer"),
        (("--config=configs/binary.py", "--config.train.stepz=3"), "--config.train.stepz: no such key; nearest: "),
        (("--config=configs/regression.py:pretraind",), "py:pretraind: unknown argument 'pretraind' after the colon"),
    ],
)
def test_wrong_flags_and_inputs_print_one_line_and_exit_with_2(small_program, flags, message):
    result = run(small_program, *flags)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    assert line.startswith("error: ")
    assert message in line
    assert not result.stdout


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("question=prompt,id=_", ("question=prompt", "id=_")),
        ("question=prompt", ("question=prompt",)),
        ("('a=b','c=d')", ("a=b", "c=d")),
        ("'a=b','c=d'", ("a=b", "c=d")),
    ],
)
def test_tuples_of_strings_may_be_given_as_lists_with_commas(monkeypatch, given, found):
    weights = "--config.objective.attribute_weights=1.0,2.0"
    arguments = ["program", "--config=configs/binary.py", f"--config.data.columns={given}", weights]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", arguments)
    flags = Flags()
    holder = flags.config("A configuration file.")
    flags.parse(arguments)
    assert holder.value.data.columns == found
    assert holder.value.objective.attribute_weights == (1.0, 2.0)


def test_warnings_of_damage_are_one_line(small_program):
    result = run(small_program, "--fast")
    assert (result.returncode, result.stdout, result.stderr) == (0, "a\n", "warning: checkpoints/6 is damaged\n")


def test_other_exit_statuses_are_kept(small_program):
    assert run(small_program, "--exit=3").returncode == 3
    result = run(small_program, "--kind=b", "--count=2")
    assert (result.returncode, result.stdout) == (0, "bb\n")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("flag", ["--kind=b", "--help"])
def test_a_closed_output_ends_the_program_without_traceback(small_program, flag, count):
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(small_program), flag, f"--count={count}"]
    result = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_not_taken_for_the_output(small_program):
    small_program.write_text(small_program.read_text().replace("print(_KIND", "raise BrokenPipeError  # print(_KIND"))
    result = run(small_program)
    assert result.returncode == 1
    assert "BrokenPipeError" in result.stderr


def test_all_programs_can_be_imported_together():
    code = f"import sys, {', '.join(f'rmjax.{program}' for program in PROGRAMS)}"
    result = run("-c", f"{code}; print(sys.modules['rmjax.train'].FLAGS.values['workdir'].name)")
    assert (result.returncode, result.stdout) == (0, "workdir\n"), result.stderr


def test_help_of_train_lists_the_configuration_files():
    text = run("-m", "rmjax.train", "--help").stdout
    assert "--config: Configuration file; --config.section.key=value overrides." in text
    assert "docs/configuration.md" in text
    for path in (ROOT / "configs").glob("*.py"):
        assert f"  configs/{path.name} " in text
    assert "Multi-attribute regression: several labels per response, some of which may be missing.\n" in text
