"""Start-up of the programs: flags, exit statuses, multi-host initialization and process settings."""

import functools
import io
import os
import re
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging
from ml_collections import config_flags

from rmjax.core import config_checks, config_file, os_errors, peers, stopping
from rmjax.core.errors import InputError
from rmjax.core.memory import MemoryWarning
from rmjax.core.option_names import rename_options
from rmjax.core.state_files import StateWarning

TEMPLATE_DATE_HELP = "Date that a chat template writes, YYYY-MM-DD; default: that of training, or 2024-07-26."
MESH_HELP = (
    "Sizes of the device mesh's axes, such as tensor=4,fsdp=2, over which parameters and rows are sharded; default: "
    "each device has all parameters."
)
COMBINATION_HELP = "Combination of the rewards of a head's members; default: the model's."
BETA_HELP = "Factor of the standard deviation in mean_std, level of quantile; default: the model's."
_WARN = warnings.showwarning
_HELP_FLAGS = {"-h", "-?", "--help", "-help", "--helpshort", "--helpfull", "--helpxml"}
# What absl says of values that cannot be parsed, and what the programs say.
_PARSE_ERRORS = {
    r"invalid literal for int\(\) .*": "expected an integer",
    r"could not convert string to float.*": "expected a number",
    r"\('Non-boolean argument.*": "expected true or false",
    r"Found (\S+) in argv before .*": r"\1 comes before --config=FILE; put it after",
}


class Flags:
    """The flags of one program, separate from absl's global ones: several programs can be imported in one process.

    The methods define a flag (as absl's DEFINE_*) and return its holder, with its `value` after `parse`.

    Args:
      positional: there are positional arguments, before, between or after flags; otherwise they are refused.
    """

    def __init__(self, positional: bool = False) -> None:
        self.values, self.positional = flags.FlagValues(), positional
        self.values.set_gnu_getopt(positional)
        define: Callable[[Callable], Callable] = lambda function: functools.partial(function, flag_values=self.values)
        self.string = define(flags.DEFINE_string)
        self.integer = define(flags.DEFINE_integer)
        self.float = define(flags.DEFINE_float)
        self.bool = define(flags.DEFINE_bool)
        self.enum = define(flags.DEFINE_enum)
        self.list = define(flags.DEFINE_list)

    def config(self, description: str) -> Any:
        """Defines --config=FILE[:ARGUMENT] with overrides --config.KEY=VALUE; the value is a ConfigDict or None."""
        holder = config_flags.DEFINE_config_file("config", None, description, flag_values=self.values)
        self.values["config"].parser = _ConfigParser()
        return holder

    def parse(self, argv: Sequence[str]) -> list[str]:
        """Parses the command line and returns the program's name and the positional arguments.

        Raises:
          InputError: a flag is unknown, its value is wrong, or a configuration file cannot be used.
        """
        try:
            return self.values([_with_tuple(argument) for argument in argv])
        except flags.UnrecognizedFlagError as error:
            if error.flagname.partition(".")[0] == "config" and "config" in self.values:
                raise InputError(f"--{error.flagname}: --config=FILE is missing") from error
            raise InputError(str(error)) from error
        # A wrong override raises whatever ml_collections raises.
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error.__context__, InputError):  # of `_ConfigParser`, wrapped by absl
                raise error.__context__ from None
            message = " ".join(str(error).split()).removeprefix("flag ")
            for found, replacement in _PARSE_ERRORS.items():
                message = re.sub(found, replacement, message)
            raise InputError(message) from error


def _with_tuple(argument: str) -> str:
    """Returns an argument in which a tuple of strings, given as a,b, is written as ml_collections reads it.

    >>> _with_tuple("--config.data.columns=question=prompt,id=_")
    "--config.data.columns=('question=prompt', 'id=_')"
    """
    match = re.fullmatch(r"(--?config\.([\w.]+)=)([^'\"(\[].*,.*)", argument, re.DOTALL)
    if match is None or match[2] not in config_checks.ELEMENTS[str]:
        return argument
    return match[1] + repr(tuple(match[3].split(",")))


class _ConfigParser(flags.ArgumentParser):
    """Loads a configuration file and checks the names of the overrides on the command line."""

    def parse(self, path: str) -> Any:
        config = config_file.load(path)
        for argument in sys.argv[1:]:
            if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                config_file.check_override(config, match[1])
        return config


def run(
    main: Callable[[Sequence[str]], None],
    program_flags: Flags,
    *,
    options: Mapping[str, str] | None = None,
    more_help: Callable[[], str] = lambda: "",
) -> None:
    """Runs `main` with flags parsed; wrong flags, InputError and OSError print one line to stderr and exit with 2.

    A signal exits with 128 + its number (`stopping`). Of several processes, the others are told (`peers`).

    Args:
      main: is called with the program's name and the positional arguments, which only some programs have.
      options: the flags that set configuration keys, {"data.format": "--format"}; error messages name them instead.
      more_help: returns text that --help prints below the flags.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        logging.set_verbosity(logging.WARNING)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a log file receives each line at once
        if not _HELP_FLAGS.isdisjoint(argv):
            print("\n\n".join(filter(None, (sys.modules["__main__"].__doc__, _help(program_flags), more_help()))))
            sys.exit(0)
        try:
            arguments = program_flags.parse(argv)
        except InputError as error:
            _fail(str(error))
        flags.FLAGS(argv[:1])  # libraries read absl's own flags
        return arguments

    warnings.showwarning = _show_warning

    def checked_main(arguments: Sequence[str]) -> None:
        if len(arguments) > 1 and not program_flags.positional:
            _fail(f"unexpected argument {arguments[1]!r}; see --help")
        stopping.start()
        try:
            main(arguments)
        except InputError as error:
            _fail(rename_options(str(error), options or {}), notes=getattr(error, "__notes__", ()))
        except BrokenPipeError:
            raise
        except OSError as error:
            _fail(os_errors.describe(error))
        except stopping.Stopped as stopped:
            peers.fail(str(stopped), 128 + stopped.number)
            stopping.exit_at_once(stopped.number)
        except KeyboardInterrupt:  # of another handler
            stopping.exit_at_once(signal.SIGINT)
        except Exception as error:
            if peers.PEERS is None:
                raise
            message, status = peers.PEERS.failure(error)
            if message:  # which is why a collective operation failed here
                _fail(f"{message}; this process ends too", status)
            traceback.print_exc()
            peers.fail(f"{type(error).__name__}: {error}", 1)
            os._exit(1)  # the interpreter's shutdown would wait for the others
        finally:
            if peers.PEERS is not None:
                peers.PEERS.close()

    try:
        app.run(checked_main, flags_parser=parse)
    except BrokenPipeError:
        _end_closed_output()
        raise


def _end_closed_output() -> None:
    """Exits as SIGPIPE would if the reader of standard output has ended (`| head`); returns if another pipe broke."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported whatever the mask is
    if poll.poll(0):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        sys.exit(128 + signal.SIGPIPE)


def _help(program_flags: Flags) -> str:
    values = program_flags.values
    lines = [line for module in values.flags_by_module_dict() for line in values.module_help(module).splitlines()]
    return "\n".join(["flags:", *(line for line in lines if line.startswith(" "))])


def use_huge_pages() -> None:
    """Re-executes the program on Linux with huge pages (faster with XLA on CPU), unless GLIBC_TUNABLES is set."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # glibc 2.35 or newer reads it, before main
        os.execv(sys.executable, sys.orig_argv)


def enable_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache (in ~/.cache/rmjax), unless JAX_COMPILATION_CACHE_DIR is set."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax  # slow to import, and `use_huge_pages` comes first

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "rmjax"))


def initialize_distributed() -> None:
    """Initializes JAX for a multi-host run if JAX_COORDINATOR_ADDRESS is set; only process 0 prints from then on.

    Raises:
      InputError: the processes cannot connect, or a variable is not a number.
    """
    if (address := os.environ.get("JAX_COORDINATOR_ADDRESS")) is None:
        return
    import jax  # slow to import, and `use_huge_pages` comes first

    variables = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # not set: the scheduler's values
    try:
        count, index = (int(os.environ[name]) if name in os.environ else None for name in variables)
        peers.connect(address, count, index)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, but the processes could not connect ({error}); check it, "
            f"{' and '.join(variables)} (see --help)"
        ) from error
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, StateWarning | MemoryWarning):
        print(f"warning: {message}", file=file or sys.stderr)
    else:
        _WARN(message, category, filename, lineno, file, line)


def _fail(message: str, status: int = 2, notes: Sequence[str] = ()) -> NoReturn:
    line = re.sub(r"\s*\n\s*", " ", message)
    if peers.PEERS is not None and peers.PEERS.leaving:  # the line that another process has failed was printed
        time.sleep(60)
    print(f"error: {line}", *notes, sep="\n", file=sys.stderr)
    peers.fail(line, status)
    if peers.PEERS is not None:
        sys.stderr.flush()
        os._exit(status)  # the interpreter's shutdown would wait for the others
    sys.exit(status)
