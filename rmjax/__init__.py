"""Reward models in pure JAX: training, evaluation, offline scoring, export and serving.

    import rmjax

    run = rmjax.train(rmjax.configs.small(), train=records, validation="test.jsonl", workdir="runs/first")
    model = rmjax.load(run)
    model.score("2 + 2?", ["4", "5"])

Programs: `python -m rmjax.NAME --help` with train, evaluate, score, export, serve or describe. Sub-packages import only
from lower layers: core; data and models; metrics; training and evaluation; serving.
"""

import os
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmjax.api import Model as Model
    from rmjax.api import Run as Run
    from rmjax.api import average as average
    from rmjax.api import calibrate as calibrate
    from rmjax.api import describe as describe
    from rmjax.api import evaluate as evaluate
    from rmjax.api import find_duplicates as find_duplicates
    from rmjax.api import load as load
    from rmjax.api import plan as plan
    from rmjax.api import serve as serve
    from rmjax.api import train as train
    from rmjax.core import config as configs  # noqa: F401
    from rmjax.core.errors import InputError as InputError

__version__ = "0.1.0"
_FUNCTIONS = (
    *("average", "calibrate", "describe", "evaluate", "find_duplicates", "load", "plan", "serve", "train"),
    *("Model", "Run"),
)

# Otherwise transformers reports at every start that PyTorch is missing, which rmjax does not need.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if sys.argv[:1] == ["-m"]:  # `python -m rmjax.PROGRAM`, whose imports take seconds
    from rmjax.core import stopping

    stopping.install()
    del stopping


class _Package(types.ModuleType):
    """The package, whose functions are imported when they are first used.

    Properties, since `train`, `evaluate`, `serve` and others are also the names of programs: importing one of those
    modules sets it as an attribute of the package, which these setters ignore.
    """

    def __dir__(self) -> list[str]:
        return sorted(["InputError", "__version__", "configs", *_FUNCTIONS])

    @property
    def configs(self) -> Any:
        """Configurations: `small()`, `fine_tuning()`, `default()`."""
        from rmjax.core import config

        return config

    @property
    def InputError(self) -> Any:
        """The exception of bad input."""
        from rmjax.core.errors import InputError

        return InputError


def _lazy(name: str) -> property:
    def get(_: Any) -> Any:
        from rmjax import api

        return getattr(api, name)

    return property(get, lambda _, module: None)


for _name in _FUNCTIONS:
    setattr(_Package, _name, _lazy(_name))

sys.modules[__name__].__class__ = _Package
