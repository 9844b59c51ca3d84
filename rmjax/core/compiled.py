"""What a compiled program needs on devices that need not be there: memory and communication."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence

import jax

from rmjax.core.chips import CHIPS, Chip
from rmjax.core.errors import InputError

_DTYPES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_SHAPE = re.compile(rf"\b({'|'.join(_DTYPES)})\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({_KINDS})(-start)?\(")
_SCATTER = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (\S+) fusion\(.*calls=%?(all-reduce-scatter[\w.-]*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_RING = re.compile(r"%([\w.-]*windowed_dot_general_body[\w.-]*) ")
_PAIR = re.compile(r"\{(\d+),(\d+)\}")
_NO_MEMORY = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """The needs of a program; bytes are per device.

    Attributes:
      argument_bytes: of the arguments; 0 if the program does not fit and could not be compiled.
      available: memory of the device; 0: unknown.
      collectives: {kind: bytes that a device receives in a run}.
    """

    peak_bytes: int
    argument_bytes: int
    available: float
    collectives: dict[str, float]


def compile_program(
    compile: Callable[[], jax.stages.Compiled], chip: Chip, trip_counts: Sequence[int], name: str
) -> CompiledProgram:
    """Returns the needs of the program that `compile` compiles.

    Args:
      trip_counts: how often its nested loops run, the outermost first.
      name: of the program, in errors.

    Raises:
      InputError: it cannot be compiled for another reason than its memory.
    """
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        if match := _NO_MEMORY.search(str(error)):
            peak, available = (float(match[i]) * _UNITS[match[i + 1].upper()] for i in (1, 3))
            return CompiledProgram(int(peak), 0, available, {})
        raise InputError(f"{name} cannot be compiled: {' '.join(str(error).split())[:400]}") from error
    statistics, text = compiled.memory_analysis(), compiled.as_text()
    assert statistics is not None
    assert text is not None
    peak_bytes = statistics.peak_memory_in_bytes
    if chip.name == CHIPS["cpu"].name:  # XLA's peak leaves out temporary arrays there
        peak_bytes = statistics.argument_size_in_bytes + statistics.temp_size_in_bytes
    collectives: dict[str, float] = {}
    for kind, size in sorted(collectives_of(text, trip_counts)):
        collectives[kind] = collectives.get(kind, 0.0) + size
    return CompiledProgram(peak_bytes, statistics.argument_size_in_bytes, chip.memory, collectives)


def collectives_of(text: str, trip_counts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Yields the kind of each collective in a compiled program, and the bytes that a device receives by it in a run.

    An all-reduce counts twice, since each byte is sent to be summed and sent back. The nesting of loops is read from
    the name of the operation; a channel that occurs several times is one collective, split to overlap with products.
    A loop that XLA makes of a gather or scatter and a product passes the shards around a ring, each to every device.
    """
    found: dict[tuple[str, str], float] = {}
    inside_scatter, ring = False, ""
    for line in text.splitlines():
        if line.startswith("%all-reduce-scatter"):
            inside_scatter = True
        elif line.startswith("}"):
            inside_scatter, ring = False, ""
        elif found_ring := _RING.match(line):
            ring = found_ring[1]
        scatter, match = _SCATTER.match(line), _COLLECTIVE.match(line)
        if scatter:
            kind, result, channel = "reduce-scatter", scatter[1], scatter[2]
        elif match and not inside_scatter:
            kind, result = match[2], match[1]
            channel = number[1] if (number := _CHANNEL.search(line)) else line
        else:
            continue
        name = match_name[1] if (match_name := _OP_NAME.search(line)) else ""
        times = 1
        for trips in trip_counts[: name.count("while/body")]:
            times *= trips
        sizes = _sizes(result)
        received = max(sizes) if match and match[3] else sum(sizes)  # asynchronous: operands are in the type too
        if ring and kind == "collective-permute":
            times, channel = times * (_ring_length(line) - 1), ring
        size = times * received * (2 if kind == "all-reduce" else 1)
        found[kind, channel] = max(size, found.get((kind, channel), 0.0))
    for (kind, _), size in found.items():
        yield kind, size


def _ring_length(line: str) -> int:
    """Returns the number of devices around which a collective-permute passes an array."""
    pairs = dict(_PAIR.findall(line))
    first = device = next(iter(pairs))
    length = 1
    while (device := pairs.get(device, first)) != first:
        length += 1
    return length


def _sizes(result: str) -> list[float]:
    """Returns the bytes of each array of a result's type, such as `bf16[4,8]{1,0}` or a tuple of them."""
    sizes = []
    for dtype, dimensions in _SHAPE.findall(result):
        sizes.append(float(math.prod(map(int, filter(None, dimensions.split(",")))) * _DTYPES[dtype]))
    return sizes
