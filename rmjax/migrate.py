"""Migrates a configuration of another trainer, or a checkpoint of NeMo.

    python -m rmjax.migrate nemo_aligner training_rm.yaml [KEY=VALUE ...] --output=config.py
    python -m rmjax.migrate nemo_rl rm.yaml [KEY=VALUE ...] --output=config.py
    python -m rmjax.migrate trl reward.yaml --output=config.py
    python -m rmjax.migrate openrlhf train_rm.sh --output=config.py
    python -m rmjax.migrate openrlhf --args="--pretrain DIR --dataset FILE" --output=config.py
    python -m rmjax.migrate nemo_checkpoint MODEL.nemo --tokenizer=DIR --output=DIR

Without --output the configuration is printed. It lists each key that was taken over, each one without a counterpart,
with the reason, and what the other trainer does otherwise: docs/migration.md.
"""

import pathlib
from collections.abc import Sequence

from rmjax.core import files, program
from rmjax.core.errors import InputError
from rmjax.migration import nemo_checkpoint, output
from rmjax.migration.trainers import TRAINERS, migrate

FLAGS = program.Flags(positional=True)
_OUTPUT = FLAGS.string("output", "", "Configuration file, or directory of the converted checkpoint; must be new.")
_ARGS = FLAGS.string("args", "", "Command line of trl or openrlhf, instead of a file.")
_TOKENIZER = FLAGS.string("tokenizer", "", "nemo_checkpoint: Hugging Face directory or hub name of the tokenizer.")
_CHECKPOINT = "nemo_checkpoint"


def main(arguments: Sequence[str]) -> None:
    """Migrates the file of the positional arguments."""
    sources = [*TRAINERS, _CHECKPOINT]
    if len(arguments) < 2 or arguments[1] not in sources:
        found = repr(arguments[1]) if len(arguments) > 1 else "missing"
        raise InputError(f"the source is {found}; expected one of {', '.join(sources)}")
    source, rest = arguments[1], list(arguments[2:])
    file = rest.pop(0) if rest and "=" not in rest[0] else ""
    if source == _CHECKPOINT:
        _convert(file, rest)
        return
    target = pathlib.Path(_OUTPUT.value)
    if _OUTPUT.value and (target.exists() or target.suffix != ".py"):
        raise InputError(f"--output={target}: expected a new file with the ending .py")
    migration = migrate(source, file, _ARGS.value, rest)
    text = output.render(migration, _OUTPUT.value or "FILE")
    if not _OUTPUT.value:
        print(text, end="")
        return
    files.write_atomic(target, text)
    print(f"{output.report(migration)}\n\nwrote {target}; start with: python -m rmjax.train --config={target}")


def _convert(file: str, rest: Sequence[str]) -> None:
    if not file or not _OUTPUT.value or rest:
        raise InputError("expected: nemo_checkpoint MODEL.nemo --output=DIR")
    for line in nemo_checkpoint.convert(pathlib.Path(file), pathlib.Path(_OUTPUT.value), _TOKENIZER.value):
        print(line)


if __name__ == "__main__":
    program.run(main, FLAGS)
