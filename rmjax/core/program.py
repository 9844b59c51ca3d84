"""Start-up of the programs: flags, exit statuses, multi-host initialization and process settings."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from rmjax.core.errors import InputError

_HELP_FLAGS = {"-h", "-?", "--help", "-help", "--helpshort", "--helpfull", "--helpxml"}


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main` with flags parsed; wrong flags and InputError print one line to standard error and exit with 2.

    Args:
      main: is called with the program's name; positional arguments are refused.
    """

    def checked_main(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            _fail(f"unexpected argument {arguments[1]!r}; see --help")
        try:
            main(arguments)
        except InputError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(checked_main, flags_parser=_parse_flags)


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
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, but the processes could not connect ({error}); check it, "
            f"{' and '.join(variables)} (see --help)"
        ) from error
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)
    try:
        return flags.FLAGS(["--help" if argument == "-h" else argument for argument in argv])
    except SystemExit as error:  # absl exits with 1 after it has printed the help
        sys.exit(error.code if _HELP_FLAGS.isdisjoint(argv) else 0)
    # A config file runs while flags are parsed; a wrong override raises whatever ml_collections raises.
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        _fail(" ".join(message.split()))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
