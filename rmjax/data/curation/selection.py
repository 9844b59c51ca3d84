"""Leave comparisons out of the training data: duplicates, and those whose prompt is in an evaluation set."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmjax.core.config_checks import check_choice
from rmjax.core.errors import InputError
from rmjax.data.curation.duplicates import match, near_duplicates, same_conversations, signatures
from rmjax.data.records.conversations import join_strings
from rmjax.data.records.fields import BadField, messages
from rmjax.data.records.formats import DETECTION_RECORDS, detect_format
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import SYNTHETIC, iterate_comparisons, read_comparisons
from rmjax.data.records.report import ReadReport
from rmjax.data.records.sources import BadRecord, Source, Sources, as_tuple, find_sources
from rmjax.data.schema import Comparison


class Reference(NamedTuple):
    """Data that other data is compared with.

    Attributes:
      signatures: `duplicates.SIGNATURE` [n].
      comparisons: the n comparisons.
      names: the source of each comparison.
    """

    signatures: np.ndarray
    comparisons: list[Comparison]
    names: list[str]


def read_reference(sources: Sources, options: ReadOptions, *, progress: bool = False) -> Reference:
    """Returns data of any format, with or without labels, or prompts alone, to compare other data with.

    The format is detected; where that fails it is `options.format`. Records with a prompt and no response are prompts.

    Raises:
      InputError: a source cannot be read, or none of its records has a prompt.
    """
    parts, comparisons, names = [], [], []
    for source in find_sources(sources):
        found = _read_unlabeled(source, options)
        parts.append(signatures(found, progress=f"comparing {source}" if progress else ""))
        if not parts[-1]["prompt"].any():
            raise InputError(
                f"config.data.exclude: no record of {source} has a prompt by which it could be found in the training "
                "data; rename the field that is the prompt (data.columns = 'old=prompt'), or give another file"
            )
        comparisons += found
        names += [str(source)] * len(found)
    return Reference(np.concatenate(parts), comparisons, names)


def _read_unlabeled(source: Source, options: ReadOptions) -> list[Comparison]:
    unlabeled = ReadOptions(strings=options.strings, columns=options.columns, labeled=False)
    try:
        return _read_prompts(source, unlabeled) or read_comparisons(source, unlabeled)[0]
    except InputError as error:
        if options.format == "auto":  # every record counts, so none is skipped
            reason = str(error).removesuffix(" (or set data.on_bad_record to skip)")
            raise InputError(f"config.data.exclude: {reason}") from error
    return read_comparisons(source, dataclasses.replace(unlabeled, format=options.format))[0]


def _read_prompts(source: Source, options: ReadOptions) -> list[Comparison]:
    """Returns the prompts of a source whose records have no response; an empty list if they are of a known format."""
    records = source.records(ReadReport(), options.columns)
    head = list(itertools.islice(records, DETECTION_RECORDS))
    try:
        detect_format(head, options)
    except InputError:
        if not all(record.get("prompt") for _, record in head if not isinstance(record, BadRecord)):
            raise
        return [_prompt_alone(where, record) for where, record in itertools.chain(head, records)]
    return []


def _prompt_alone(where: str, record: Any) -> Comparison:
    """Returns the comparison of a prompt with an empty response."""
    if isinstance(record, BadRecord):
        raise InputError(f"{where}: {record.reason}")
    prompt = record.get("prompt")
    try:
        turns = messages(join_strings(prompt, "", chat=True) if isinstance(prompt, str) else prompt, "prompt")
    except BadField as error:
        raise InputError(f"{where}: {error}") from error
    empty = {"role": "assistant", "content": ""}
    return Comparison(([*turns, *([] if turns[-1] == empty else [empty])],), True, (), None, where, {})


class Curation:
    """Chooses comparisons of a training source, given the sources that are read before it.

    Args:
      sources, split, synthetic_size: as for `read_comparisons`.
      options: `exclude`, `duplicates` and `similarity` are described in the section `data` of the configuration.
      previous: the curation of the source before this one; the first of duplicates over all sources is kept.
      progress: show progress bars.
    """

    def __init__(
        self,
        sources: Sources,
        options: ReadOptions,
        *,
        split: str = "train",
        synthetic_size: int = 0,
        previous: "Curation | None" = None,
        progress: bool = False,
    ):
        check_choice("data.duplicates", options.duplicates)
        self._sources, self._options, self._previous = as_tuple(sources), options, previous
        self._split, self._synthetic_size, self._progress = split, synthetic_size, progress
        self._chosen: tuple[np.ndarray, np.ndarray] | None = None  # signatures and places of what is kept

    @property
    def is_active(self) -> bool:
        """Whether comparisons may be left out."""
        return bool(self._options.exclude) or self._options.duplicates != "keep"

    def fingerprint(self) -> str:
        """Returns a hash of the content of the other sources on which the choice depends."""
        digest = hashlib.sha256()
        before = [sources for curation in self._earlier() for sources in curation._sources]
        for name in (*self._options.exclude, *before):
            found = [] if name == SYNTHETIC else find_sources(name)
            digest.update(f"{name}\0{[source.fingerprint() for source in found]}\0{self._synthetic_size}".encode())
        return digest.hexdigest()

    def choose(self, comparisons: Sequence[Comparison], report: ReadReport) -> list[Comparison]:
        """Returns the comparisons that are kept; see `find_kept`."""
        return list(itertools.compress(comparisons, self.find_kept(comparisons, report)))

    def find_kept(self, comparisons: Iterable[Comparison], report: ReadReport) -> np.ndarray:
        """Returns which of the source's comparisons are kept, bool [n]; counts the others in the report, as skipped.

        The comparisons may be an iterator: signatures and places are held, the texts are not.

        Raises:
          InputError: a file of `exclude`, or an earlier source, cannot be read.
        """
        options, progress = self._options, f"comparing {', '.join(map(str, self._sources))}" if self._progress else ""
        similar, all_places = bool(options.exclude) or options.duplicates == "drop_near", []

        def note_places() -> Iterator[Comparison]:
            for comparison in comparisons:
                all_places.append(comparison.where)
                yield comparison

        found = signatures(note_places(), similar=similar, progress=progress)
        places, kept = np.array(all_places, object), np.ones(len(found), bool)
        if options.exclude:
            kept = self._leave_out_excluded(places, found, report)
        if options.duplicates != "keep":
            kept[kept] = self._leave_out_duplicates(places[kept], found[kept], report)
            self._chosen = found[kept], places[kept]
        return kept

    def _leave_out_excluded(self, places: np.ndarray, found: np.ndarray, report: ReadReport) -> np.ndarray:
        """Returns which comparisons are kept, bool [n]; counts the others."""
        matches = match(found, self._excluded.signatures, self._options.similarity)
        for i in np.flatnonzero(matches.similar_prompt >= 0).tolist():
            is_same = matches.prompt[i] >= 0
            other = int(matches.prompt[i] if is_same else matches.similar_prompt[i])
            place, name = self._excluded.comparisons[other].where, self._excluded.names[other]
            reason = f"its prompt is that of {place}" if is_same else f"its prompt is similar to that of {place}"
            report.skip(places[i], reason, f"prompt in {name}" if is_same else f"similar prompt in {name}")
        return matches.similar_prompt < 0

    def _leave_out_duplicates(self, places: np.ndarray, found: np.ndarray, report: ReadReport) -> np.ndarray:
        """Returns which comparisons are kept, bool [n]; counts the others."""
        earlier = [curation._kept() for curation in self._earlier()]
        places, own = np.concatenate([*(part for _, part in earlier), places]), len(found)
        found = np.concatenate([*(part for part, _ in earlier), found])
        same = same_conversations(found)
        first = near_duplicates(found, self._options.similarity) if self._options.duplicates == "drop_near" else same
        is_first = first == np.arange(len(found))
        is_first[: len(found) - own] = True  # those of earlier sources, which are kept
        for i in np.flatnonzero(~is_first).tolist():
            if same[i] == i:
                kind, reason = "near duplicate of another comparison", f"similar to {places[first[i]]}"
            else:
                kind, reason = "duplicate of another comparison", f"the same conversations as {places[same[i]]}"
                if found["labels"][i] != found["labels"][same[i]]:
                    kind, reason = f"{kind}, with other labels", f"{reason}, with other labels"
            report.skip(places[i], reason, kind)
        return is_first[len(found) - own :]

    def _earlier(self) -> Iterator["Curation"]:
        """Yields the curations of the sources before this one, in order, if duplicates are left out."""
        if self._previous is not None and self._options.duplicates != "keep":
            yield from self._previous._earlier()
            yield self._previous

    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the signatures and places of what is kept; reads the source unless `find_kept` was called."""
        if self._chosen is None:
            size, report = self._synthetic_size, ReadReport()
            found = iterate_comparisons(self._sources, self._options, report, split=self._split, synthetic_size=size)
            self.find_kept(found, report)
        assert self._chosen is not None
        return self._chosen

    @functools.cached_property
    def _excluded(self) -> Reference:
        if self._previous is not None:
            return self._previous._excluded
        return read_reference(self._options.exclude, self._options, progress=self._progress)
