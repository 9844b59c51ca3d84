"""What produced a score file: recorded beside it, and compared before the file is continued."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from rmjax.core import state_files
from rmjax.core.errors import InputError
from rmjax.data.records.formats import user_format
from rmjax.evaluation.ensemble import EnsemblePipeline
from rmjax.evaluation.pipeline import RewardPipeline
from rmjax.models import partition


def record_path(output: pathlib.Path) -> pathlib.Path:
    """Returns the path of the record of a score file: OUTPUT.run.json."""
    return output.with_name(f"{output.name}.run.json")


def describe(pipeline: RewardPipeline) -> dict[str, Any]:
    """Returns all that determines the rewards of a record, as JSON values; all processes must call it.

    The number of processes, devices and rows of a batch are not part of it: they change rewards by float rounding only.
    """
    model, tokenizer = pipeline.scorer.model, pipeline.tokenizer
    hyperparameters = repr((model.decoder, model.head, model.family))
    others: dict[str, Any] = {"correction": None, "ensemble": None}
    if pipeline.scorer.correction is not None:
        others["correction"] = pipeline.scorer.correction.to_json()
    if isinstance(pipeline, EnsemblePipeline):
        combined = pipeline.combined
        others["ensemble"] = [*map(describe, pipeline.others), combined.combination, combined.beta]
    return others | {
        "parameters": partition.checksum(pipeline.scorer.params),
        "hyperparameters": hashlib.sha256(hyperparameters.encode()).hexdigest(),
        "dtype": model.dtype,
        "tokenizer": tokenizer.fingerprint,
        "max_length": pipeline.max_length,
        "format_file": user_format.fingerprint(pipeline.options.format),
        **json.loads(json.dumps(dataclasses.asdict(pipeline.options))),
    }


def save(output: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes the record of a score file that is about to be begun."""
    state_files.write_sealed(record_path(output), record)


def check(output: pathlib.Path, record: dict[str, Any]) -> None:
    """Raises InputError if a score file that has lines was produced otherwise than `record` says.

    A file without a record is accepted, with a warning.
    """
    path = record_path(output)
    if not path.exists():
        state_files.warn(f"{output} is continued without knowing what model and options wrote it: {path} is missing")
        return
    old = {"shard": "0/1"} | state_files.read_sealed(path)  # files of earlier versions are whole
    changed = [key for key in record if old.get(key) != record[key]]
    if not changed:
        return
    models = {"parameters", "hyperparameters", "tokenizer"} & set(changed)
    shown = [f"{key} was {old.get(key)!r} and is {record[key]!r}" for key in changed if key not in models]
    if models:
        shown.insert(0, f"its model had {'another tokenizer' if models == {'tokenizer'} else 'other parameters'}")
    raise InputError(
        f"{output} was written by another run ({'; '.join(shown)}); use the same model and options, or choose another "
        "--output"
    )
