"""Records held in memory: lists of dictionaries, `datasets.Dataset` and pandas DataFrames."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rmjax.core.errors import InputError
from rmjax.data.records.fields import BadField


def check_records(records: Any, location: str) -> None:
    """Raises InputError unless `iterate_records` can iterate over `records`, repeatedly."""
    if _is_instance(records, "pandas", "DataFrame"):
        if not records.columns.is_unique:
            twice = records.columns[records.columns.duplicated()][0]
            raise InputError(f"{location}: the DataFrame has two columns {twice!r}; rename or drop one")
    elif isinstance(records, Mapping):
        keys = ", ".join(map(repr, list(records)[:4]))
        raise InputError(
            f"{location}: a {type(records).__name__} with the keys {keys}; expected a list of records: choose one "
            "entry if these are splits, and put a single record into a list"
        )
    elif isinstance(records, str | bytes) or not (
        isinstance(records, Sequence) or _is_instance(records, "datasets", "Dataset")
    ):
        raise InputError(
            f"{location}: a {type(records).__name__}; expected a list of dictionaries, a datasets.Dataset or a pandas "
            "DataFrame: make a list of it"
        )


def iterate_records(records: Any) -> Iterator[Any]:
    """Yields each record with the types of JSON, as `json.loads` of its line in a file would return it.

    Tuples and arrays become lists, NumPy scalars numbers, and in a DataFrame missing values None. Values of other types
    are kept, and refused where a field of the format has them. A record that is nested too deeply becomes a BadField.
    """
    is_missing: Callable[[Any], bool] = lambda value: False
    if _is_instance(records, "pandas", "DataFrame"):
        names, is_missing = list(map(str, records.columns)), _is_missing_in_pandas
        records = (dict(zip(names, row, strict=True)) for row in records.itertuples(index=False, name=None))
    for record in records:
        try:
            yield _as_json(record, is_missing)
        except RecursionError:
            yield BadField("the record is nested too deeply")


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Whether `value` is an instance of `module.name`; the module is not imported."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _is_missing_in_pandas(value: Any) -> bool:
    pandas = sys.modules["pandas"]
    return value is pandas.NA or value is pandas.NaT or (isinstance(value, float) and value != value)


def _as_json(value: Any, is_missing: Callable[[Any], bool]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry, is_missing) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry, is_missing) for entry in value]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy, tensors
        plain = value.tolist()
        return _as_json(plain, is_missing) if type(plain) is not type(value) else plain
    return None if is_missing(value) else value
