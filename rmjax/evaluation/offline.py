"""Scoring data offline: from a model's PATH and records to rewards, prediction lines and files."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, row_shards
from rmjax.core.processes import all_have, together
from rmjax.data.formats import iterate
from rmjax.data.parsers import ReadOptions
from rmjax.data.rendering import make_trees
from rmjax.data.schema import Comparison, Tree
from rmjax.data.sources import BadRecord
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluation.scoring import Scorer
from rmjax.models.build import load_model

CHUNK = 256  # records that are tokenised, scored and written together
_ACCELERATOR_ROWS = 8  # rows per device of a batch by default; on CPU one row keeps all cores busy
Item = Comparison | BadRecord


@dataclasses.dataclass(frozen=True)
class Judge:
    """A loaded reward model with all that it takes to score text.

    Attributes:
      max_length: the longest conversation that is scored, in tokens.
      options: how prompt, response and steps become a conversation, as in training.
      facts: rmjax.json, or what of it a workdir knows.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    max_length: int
    options: ReadOptions
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the A rewards of a response."""
        return self.scorer.model.head.attributes

    def reading(self, format: str, columns: Sequence[str], strings: str | None) -> "Judge":
        """Returns the judge for data of this format; strings are taken as in training where `strings` is None."""
        options = dataclasses.replace(
            self.options, format=format, columns=tuple(columns), strings=strings or self.options.strings
        )
        return dataclasses.replace(self, options=options)

    def trees(self, comparisons: Sequence[Comparison]) -> list[Tree | str]:
        """Tokenises comparisons; in the place of one that cannot be scored stands the reason."""
        return [self._fitting(tree) for tree in make_trees(comparisons, self.tokenizer)]

    def _fitting(self, tree: Tree | str) -> Tree | str:
        if isinstance(tree, Tree) and tree.longest > self.max_length:
            return f"{tree.longest} tokens, more than max_length = {self.max_length}; raise --max_length, or shorten it"
        return tree

    def merged(self, rewards: np.ndarray) -> np.ndarray:
        """Returns the one reward [R] by which responses are ranked, of rewards [R, A]."""
        weights = self.scorer.model.head.merge or [1 / len(self.attributes)] * len(self.attributes)
        return rewards @ np.asarray(weights, np.float32)

    def rewards(self, items: Sequence[Item]) -> list[np.ndarray | str]:
        """Returns the rewards float32 [K, A] of each item, or the reason why it has none."""
        good = [item for item in items if isinstance(item, Comparison)]
        trees = self.trees(good)
        usable = [tree for tree in trees if isinstance(tree, Tree)]
        _check_alike(self.scorer, usable)
        scored = iter(self.scorer.score(usable))
        found = iter([next(scored) if isinstance(tree, Tree) else tree for tree in trees])
        return [_checked(next(found)) if isinstance(item, Comparison) else item.reason for item in items]


def _check_alike(scorer: Scorer, trees: Sequence[Tree]) -> None:
    """Raises InputError if the processes would not score the same trees in the same way."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(repr((scorer.model, scorer.row_length, scorer.rows)).encode())
    for tree in trees:
        for part in (tree.prefix, *tree.branches):
            digest.update(part.tobytes() + b"|")
    if not all_have(digest.digest()):
        raise InputError("the processes score different records, or with different flags or models; give each the same "
                         "--input, --model and flags")  # fmt: skip


def _checked(rewards: np.ndarray | str) -> np.ndarray | str:
    if isinstance(rewards, str) or np.isfinite(rewards).all():
        return rewards
    return f"the model's rewards are {rewards.tolist()}, not finite; check the model's weights, or score in float32"


def open_judge(path: str, *, max_length: int = 0, rows_per_device: int = 0, dtype: str = "float32") -> Judge:
    """Loads a model and its tokenizer on all devices.

    Args:
      path: artifact, Hugging Face directory with a head, or workdir.
      max_length: 0 takes the model's.
      rows_per_device: of a batch; 0 chooses by the kind of device.

    Raises:
      InputError: there is no usable model, or max_length exceeds what it was made for.
    """
    mesh = make_mesh((-1, 1, 1, 1))
    with jax.set_mesh(mesh):
        loaded = load_model(path, mesh=mesh, dtype=dtype)
    positions = loaded.model.decoder.max_positions
    if not 0 <= max_length <= positions:
        raise InputError(f"max_length is {max_length}; the model {path} was made for 1 to {positions} positions")
    tokenizer = Tokenizer.load(str(loaded.directory))
    tokenizer.check_vocabulary(loaded.model.decoder.vocab_size)
    rows = rows_per_device or (1 if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_ROWS)
    max_length = max_length or loaded.max_length
    scorer = Scorer(loaded.model, loaded.params, mesh, max_length, rows * row_shards(mesh))
    options = ReadOptions(**loaded.facts.get("reading", {}))
    return Judge(scorer, tokenizer, max_length, options, loaded.facts)


def prediction(item: Item, rewards: np.ndarray | str, attributes: Sequence[str]) -> dict[str, Any]:
    """Returns a line of predictions: the record's own fields and `rewards`, or `error`.

    `rewards` has a number a response, or an object {attribute: value} a response where the head has several.
    """
    record = _plain(item.record)
    if isinstance(rewards, str):
        return record | {"error": f"{item.where}: {rewards}"}
    if len(attributes) == 1:
        return record | {"rewards": [float(value) for value in rewards[:, 0]]}
    return record | {"rewards": [dict(zip(attributes, map(float, row), strict=True)) for row in rewards]}


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record as JSON has it; what JSON cannot say (Parquet's times and decimals) as text."""
    return json.loads(json.dumps(record, default=str))


def predict(judge: Judge, items: Iterable[Item], progress: tqdm.tqdm) -> Iterator[list[tuple[Item, Any]]]:
    """Yields chunks of (item, its rewards or the reason why it has none), in order."""
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        yield list(zip(chunk, judge.rewards(chunk), strict=True))
        progress.update(len(chunk))


def score_file(judge: Judge, source: str, output: pathlib.Path, *, best_of: bool = False) -> tuple[int, int]:
    """Scores a file's records into `output`, one JSON line a record; continues after the lines already there.

    Several processes do it together; the first alone reads and writes `output`.

    Args:
      best_of: where a record has several responses, `best` says which one has the highest reward, from 0; of several
        attributes the merged reward, of equal rewards the first.

    Returns:
      (lines of `output`, those of them with `error`).

    Raises:
      InputError: the file cannot be read, or `output` holds lines of another input, or of another `best_of`.
    """
    items = iterate(source, dataclasses.replace(judge.options, labelled=False))
    first = jax.process_index() == 0
    with together():
        done, errors = _skip_done(items, output, best_of) if first else (0, 0)
        file = _open(output) if first else open(os.devnull, "a")  # noqa: SIM115 (closed below)
    done, errors = map(int, multihost_utils.broadcast_one_to_all(np.array([done, errors])))
    with together():  # an input that cannot be read is found here
        items = itertools.islice(items, 0 if first else done, None)
        head = list(itertools.islice(items, 1))
    if done:
        print(f"{output}: continuing after the {done:,} lines already there", flush=True)
    bar = tqdm.tqdm(initial=done, desc="scoring", unit="record", dynamic_ncols=True, disable=not first)
    with bar, file:
        for chunk in predict(judge, itertools.chain(head, items), bar):
            lines = [prediction(item, rewards, judge.attributes) for item, rewards in chunk]
            for line, (item, rewards) in zip(lines, chunk, strict=True):
                if best_of and not isinstance(rewards, str) and len(item.conversations) > 1:
                    line["best"] = int(judge.merged(rewards).argmax())
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            done += len(lines)
            errors += sum(isinstance(rewards, str) for _, rewards in chunk)
    return done, errors


def _skip_done(items: Iterator[Item], output: pathlib.Path, best_of: bool) -> tuple[int, int]:
    """Takes from `items` what `output` has lines of, and returns (lines, those with `error`)."""
    done = errors = 0
    for done, line in enumerate(_lines_there(output), 1):
        _check_same(output, done, line, next(items, None), best_of)
        errors += "rewards" not in line
    return done, errors


def _open(output: pathlib.Path) -> TextIO:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return open(output, "a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output={output} cannot be written ({error.strerror})") from error


def _lines_there(output: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of an earlier run, after cutting a last one that a kill has torn."""
    if not output.is_file():
        return
    with open(output, "rb+") as file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                found = json.loads(line)
            except ValueError as error:
                raise InputError(f"{output}:{number}: no prediction ({error}); choose another --output") from error
            if not isinstance(found, dict):
                raise InputError(f"{output}:{number}: no prediction ({found!r:.40}); choose another --output")
            yield found
        file.truncate(whole)


def _check_same(output: pathlib.Path, number: int, line: dict[str, Any], item: Item | None, best_of: bool) -> None:
    own = lambda record: {key: value for key, value in record.items() if key not in ("rewards", "error", "best")}
    if item is None or own(line) != own(_plain(item.record)):
        there = "no such record" if item is None else f"another record at {item.where}"
        raise InputError(f"{output}:{number}: scores a record of another input (--input has {there}); choose another "
                         "--output or remove the file")  # fmt: skip
    scored = isinstance(item, Comparison) and line.get("error") == item.record.get("error")  # a record may have its own
    chosen = best_of and scored and len(item.conversations) > 1
    if ("best" in line) != (chosen or "best" in item.record):
        flag = "--nobest_of" if best_of else "--best_of"
        raise InputError(f"{output}:{number}: was written with {flag}; say so again, or choose another --output")
