"""How every program starts: flags are parsed, bad input ends in one line on standard error and exit status 2."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from rmjax.core.errors import InputError

# XLA's CPU backend gains from transparent huge pages; glibc reads this before main, hence the re-execution.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main` under absl, with errors of input and flags as one clear line.

    Args:
      main: takes the arguments that are no flags.
    """
    app.run(_guarded(main), flags_parser=_parse)


def use_huge_pages() -> None:
    """Re-executes the program once with glibc's huge-page allocation, unless the user has set tunables.

    Linux with glibc 2.35 or newer; elsewhere the variable is ignored. Call before anything is imported that is slow.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _HUGE_PAGES
        os.execv(sys.executable, sys.orig_argv)


def enable_compilation_cache() -> None:
    """Keeps compiled programs from one start to the next, unless JAX has been told where, or told not to."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax  # slow to import, and `use_huge_pages` comes first

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "rmjax"))


def join_processes() -> None:
    """Joins the other processes at the address in JAX_COORDINATOR_ADDRESS, if it is set.

    All but the first process print nothing from then on.

    Raises:
      InputError: they could not join.
    """
    if (address := os.environ.get("JAX_COORDINATOR_ADDRESS")) is None:
        return
    numbers = {}
    for name in ("num_processes", "process_id"):
        variable = f"JAX_{name.upper()}"
        if (value := os.environ.get(variable)) is not None:
            if not value.isdecimal():
                raise InputError(f"{variable} is {value!r}; expected a number")
            numbers[name] = int(value)
    import jax  # slow to import, and `use_huge_pages` comes first

    try:
        jax.distributed.initialize(**numbers)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, but the processes could not join ({error}); see --help"
        ) from error
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (lives as long as the process)


def _guarded(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    def call(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            _fail(f"unexpected argument {arguments[1]!r}; see --help")
        try:
            main(arguments)
        except InputError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return call


def _parse(argv: Sequence[str]) -> Sequence[str]:
    logging.set_verbosity(logging.WARNING)
    try:
        return app.parse_flags_with_usage(argv) if "--help" in argv or "-h" in argv else flags.FLAGS(argv)
    # A config file is run while flags are parsed; a wrong override raises whatever ml_collections raises.
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        _fail(" ".join(message.split()))


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
