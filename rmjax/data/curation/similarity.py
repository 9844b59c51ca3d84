"""Near-duplicate texts: the Jaccard similarity of their word n-grams, estimated by MinHash, and found by LSH.

N-grams that a text repeats count as often as it has them (Jaccard similarity of multisets). A sketch has the lowest
byte of the smallest hash of a text's n-grams under each of H hash functions (b-bit MinHash, Li and König 2010, with
b = 8). The similarity of two texts is the share of equal bytes, with a standard error of at most 0.044. Texts that
agree in one of 32 bands of four bytes are compared (LSH): with a probability above 0.999 for a similarity of 0.7, and
of 0.87 for 0.5. All this is a fixed function of the texts, so that every process finds the same.

Axis letters: n texts, H hashes.
"""

import functools
import hashlib
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NGRAM = 2  # words
HASHES = 128
_BAND = 4  # bytes; a band's key is followed by the next four, so that the most similar texts are neighbors
_NEIGHBORS = 2  # texts before it with the same key with which a text is compared
_GROUP, _LARGE_GROUP = 8, 100  # distinct texts; a large group has a template, a smaller one may have an original
_MIN_DEVIATIONS = 4  # of a text from its template, to be comparable without it
_CHUNK = 1 << 16  # pairs compared at a time

# Kinds of characters. In scripts without spaces each character is a word. Operators are words too, so that 2 + 3 and
# 2 * 3 differ; some of them only before a digit. Other symbols are words where they are the larger part of the text.
_SEPARATOR, _SYMBOL, _BEFORE_DIGIT, _OPERATOR, _LETTER, _UNSPACED = range(6)
_SCRIPTS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))

_MULTIPLIERS = np.frombuffer(hashlib.shake_256(b"rmjax").digest(4 * HASHES), "<u4") | np.uint32(1)
_BASE = 0x9E3779B97F4A7C15  # of the polynomial hashes; odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)


def sketch(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the identity, uint64 [n], and the sketch, uint8 [n, H], of n texts, each given as parts in any order.

    Texts with the same words, without case, punctuation and white space, have the same identity; that of a text without
    words is 0. N-grams do not cross parts; the last ones of a part are shorter.

    >>> identities, _ = sketch([["What's 2 + 3?"], ["“what s 2+3”"], ["What's 2 * 3?"], ["( [ ] )"]])
    >>> (identities == identities[0]).tolist()
    [True, True, False, False]
    """
    parts = [part for text in texts for part in text]
    owner = np.repeat(np.arange(len(texts)), list(map(len, texts)))  # text of each part
    words, lengths = _hash_words(parts)
    sums = _hash_runs(words, np.cumsum(lengths) - lengths, np.cumsum(lengths))
    identities = np.zeros(len(texts), np.uint64)
    np.add.at(identities, owner, np.where(lengths > 0, sums, 0))
    counts = np.zeros(len(texts), np.int64)
    np.add.at(counts, owner, lengths)
    return identities, _min_hashes(_number_repeated(_ngrams(words, lengths), counts), counts)


def _hash_words(parts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of the words of all parts, uint64 [words], and the number of words of each part, int64."""
    normal = [t.lower() if t.isascii() else unicodedata.normalize("NFKC", t).casefold() for t in parts]
    text = "".join(f"{part}\n\n" for part in normal)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    kinds, digit = _kinds()[codes], (codes >= ord("0")) & (codes <= ord("9"))
    letter, single = kinds == _LETTER, kinds == _UNSPACED
    symbol = (kinds > _SEPARATOR) & (kinds < _LETTER)
    lengths = np.array([len(part) + 2 for part in normal], np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    excess = np.add.reduceat(symbol.astype(np.int32) - (letter | single), bounds[:-1]) if len(parts) else lengths
    single |= (kinds == _OPERATOR) | (symbol & np.repeat(excess > 0, lengths))
    sign = np.flatnonzero(kinds == _BEFORE_DIGIT)
    single[sign] |= digit[sign + 1] | ((codes[sign + 1] == ord(" ")) & digit[sign + 2])
    starts = np.flatnonzero(single | (letter & ~np.roll(letter, 1)))
    ends = np.flatnonzero(single | (letter & ~np.roll(letter, -1))) + 1
    return _hash_runs(codes, starts, ends), np.diff(np.searchsorted(starts, bounds))


@functools.cache
def _kinds() -> np.ndarray:
    """Returns the kind of each Unicode character, uint8 [0x110000]."""
    by_category = {
        "L": _LETTER,
        "M": _LETTER,
        "N": _LETTER,
        "P": _SYMBOL,
        "S": _SYMBOL,
        "Z": _SEPARATOR,
        "C": _SEPARATOR,
    }
    kinds = np.array([by_category[unicodedata.category(chr(code))[0]] for code in range(sys.maxunicode + 1)], np.uint8)
    for first, last in _SCRIPTS:
        kinds[first : last + 1] = _UNSPACED
    kinds[list(map(ord, "+=<>%^"))] = _OPERATOR
    kinds[list(map(ord, "-*/"))] = _BEFORE_DIGIT
    return kinds


def _hash_runs(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the hash of values[start:end] for each start and end, uint64: a polynomial, computed by prefix sums."""
    powers = np.cumprod(np.full(len(values) + 1, _BASE, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((values + np.uint64(1)) * powers[:-1])])
    inverse = np.cumprod(np.full(len(values) + 1, _INVERSE, np.uint64))
    return _mix((sums[ends] - sums[starts]) * inverse[starts])


def _mix(values: np.ndarray) -> np.ndarray:
    """Returns the values, uint64, with all their bits mixed: the finalizer of MurmurHash3."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))


def _ngrams(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the hash of the n-gram at each word, uint32, given the words' hashes and the length of each part."""
    starts = np.arange(len(words))
    ends = np.minimum(starts + NGRAM, np.repeat(np.cumsum(lengths), lengths))  # shorter at the end of a part
    return (_hash_runs(words, starts, ends) >> np.uint64(32)).astype(np.uint32)


def _number_repeated(grams: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the n-grams, uint32, of texts with `counts` n-grams each, with repeated ones of a text made different."""
    keys = np.repeat(np.arange(len(counts), dtype=np.uint64), counts) << np.uint64(32) | grams
    order = np.argsort(keys)  # in any order of equal ones
    index = np.arange(len(keys))
    is_first = np.diff(keys[order], prepend=np.uint64(0)) != 0
    number = index - np.maximum.accumulate(np.where(is_first, index, 0))
    repeated = order[number > 0]
    numbered = grams.copy()
    numbered[repeated] = _mix(grams[repeated].astype(np.uint64) << np.uint64(32) | number[number > 0].astype(np.uint64))
    return numbered


def _min_hashes(elements: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the sketches of n sets, uint8 [n, H], given their elements, uint32, one set after the other."""
    found = np.zeros((len(counts), HASHES), np.uint8)
    if len(elements):
        starts = (np.cumsum(counts) - counts)[counts > 0]
        minima = [np.minimum.reduceat(elements * multiplier, starts) for multiplier in _MULTIPLIERS]
        found[counts > 0] = np.stack(minima, axis=1).astype(np.uint8)
    return found


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the estimated Jaccard similarity of the n-grams of texts with these sketches, [..., H]."""
    return np.mean(first == second, axis=-1)


def group(identities: np.ndarray, sketches: np.ndarray, threshold: float) -> np.ndarray:
    """Returns for each of n texts the index of the first text in its group of near duplicates, int64 [n].

    Texts are joined if their words are the same or their similarity is at least `threshold`; a group holds what is
    joined directly or through others. Where a group has eight or more distinct texts, what most of them have in common
    is taken for a template, and they are compared by the rest; unless, among fewer than 100, one of them has nothing
    else: then the others are versions of that one. A text without words is alone.
    """
    labels = np.arange(len(identities))
    filled = np.flatnonzero(identities)
    _, first, inverse = np.unique(identities[filled], return_index=True, return_inverse=True)
    order = np.argsort(first)
    distinct = filled[first[order]]  # in the order of the texts, so that the first of a group is the first of all
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    labels[filled] = distinct[_join(sketches[distinct], threshold)][position[inverse]]
    return labels


def _join(sketches: np.ndarray, threshold: float, templates: bool = True) -> np.ndarray:
    """Returns the first index of each text's group, int64 [n]; see `group`. `templates`: whether to look for them."""
    labels = np.arange(len(sketches))
    for start in range(0, HASHES, _BAND):
        columns = np.arange(start, start + 2 * _BAND) % HASHES
        keys = np.ascontiguousarray(sketches[:, columns]).view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        bands = keys[order] >> np.uint64(8 * _BAND)
        pairs = [
            np.stack([order[at], order[at + distance]])
            for distance in range(1, _NEIGHBORS + 1)
            for at in [np.flatnonzero(bands[:-distance] == bands[distance:])]
        ]
        first, second = np.concatenate(pairs, axis=1)
        apart = labels[first] != labels[second]
        labels = _merge(labels, *_verify(sketches, first[apart], second[apart], threshold))
    return _split_templates(labels, sketches, threshold) if templates else labels


def _verify(sketches: np.ndarray, first: np.ndarray, second: np.ndarray, threshold: float) -> tuple[np.ndarray, ...]:
    """Returns those of the pairs (first, second) whose similarity is at least `threshold`."""
    chunks = [slice(at, at + _CHUNK) for at in range(0, len(first), _CHUNK)]
    alike = [similarity(sketches[first[chunk]], sketches[second[chunk]]) >= threshold for chunk in chunks]
    kept = np.concatenate([np.zeros(0, bool), *alike])
    return first[kept], second[kept]


def _merge(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the labels (the first index of each group) after the groups of each pair (first, second) are joined."""
    if not len(first):
        return labels
    n, links = len(labels), (np.concatenate([np.arange(len(labels)), first]), np.concatenate([labels, second]))
    count, groups = connected_components(coo_array((np.ones(len(links[0]), bool), links), (n, n)), directed=False)
    smallest = np.full(count, n)
    np.minimum.at(smallest, groups, np.arange(n))
    return smallest[groups]


def _split_templates(labels: np.ndarray, sketches: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the labels with each large group divided by what its texts do not have in common with most others."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    labels = labels.copy()
    for members in np.split(order, starts[1:]):
        if len(members) < _GROUP:
            continue
        rest, sizes = _sketch_deviations(sketches[members])
        if len(members) < _LARGE_GROUP and sizes.min() <= 1:
            continue
        own = _join(rest, threshold, templates=False)
        own = np.where(sizes < _MIN_DEVIATIONS, np.arange(len(members)), own)
        labels[members] = members[own]
    return labels


def _sketch_deviations(sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns sketches of where each text differs from most texts, and at how many positions it does, int64 [n]."""
    deviates = np.empty(sketches.shape, bool)
    for column in range(HASHES):
        common = np.bincount(sketches[:, column], minlength=256) > len(sketches) / 2
        deviates[:, column] = ~common[sketches[:, column]]
    sizes, parts = deviates.sum(axis=1), []
    for at in range(0, len(sketches), _CHUNK):
        rows = slice(at, at + _CHUNK)
        positions = np.nonzero(deviates[rows])[1].astype(np.uint64)
        elements = _mix(256 * positions + sketches[rows][deviates[rows]] + 1)
        parts.append(_min_hashes(elements.astype(np.uint32), sizes[rows]))
    return np.concatenate(parts), sizes
