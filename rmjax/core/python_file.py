"""Python files of the user: loading one as a module, and its errors as one line."""

import importlib.util
import pathlib
import sys
import traceback
from types import ModuleType


def load_module(path: str, name: str) -> ModuleType:
    """Returns the module of a Python file, under a name in `sys.modules`; raises what the file raises."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def describe_error(error: Exception, path: str) -> str:
    """Returns the type and text of an error and the line of the file at which it was raised, as one line."""
    same = lambda name: name is not None and pathlib.Path(name).resolve() == pathlib.Path(path).resolve()
    if isinstance(error, SyntaxError):
        line, text = error.lineno if same(error.filename) else None, error.msg
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if same(frame.filename)]
        line, text = lines[-1] if lines else None, _text(error)
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {' '.join(text.split())}"


def _text(error: BaseException) -> str:
    """Returns the text of an error; that of KeyError is quoted, and ml_collections puts one into an AttributeError."""
    if len(error.args) == 1 and isinstance(error, KeyError | AttributeError):
        return _text(error.args[0]) if isinstance(error.args[0], BaseException) else str(error.args[0])
    return str(error)
