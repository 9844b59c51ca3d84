"""Whether the parameters of a model fit in memory, before they are loaded, and the options with which they would."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from rmjax.core import memory
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, parse_sizes
from rmjax.core.option_names import Option
from rmjax.models.decoder import RewardModel
from rmjax.models.sharding import bytes_per_device, check_heads, meshes, sharded_shapes

_MAX_SHOWN = 3  # options
_Settings = dict[str, Any]  # options of loading: `mesh`, `dtype`, `int8`


def check_parameters(
    model: RewardModel,
    mesh: Mesh,
    path: str,
    *,
    int8: bool = False,
    whole: bool = False,
    trained: bool = False,
    option: Option | None = None,
) -> None:
    """Warns if the parameters of a model leave little memory on a device; those on CPU devices share the host's.

    Args:
      path: of the model, in messages.
      int8: the layers' matrices are stored as int8.
      whole: the parameters are restored in the dtypes of the model first, whatever is stored in the end.
      trained: beside the parameters there will be AdamW's moments, and two sets of gradients while they accumulate.
      option: formats the options of loading in messages; None: the caller has none.

    Raises:
      InputError: they do not fit (it names the options with which they would), or the mesh does not fit the model.
    """
    name = option("mesh") if option else "config.mesh"
    check_heads(model.decoder, mesh, name)
    int8 = int8 and not whole
    devices = mesh.local_devices
    available = memory.host_memory() if devices[0].platform == "cpu" else memory.device_memory(devices[0])

    def fix() -> str:
        fitting: list[_Settings] = []
        shown: list[str] = []
        if option and available:
            for settings, size in _changes(model, mesh, int8, whole or trained, trained):
                fewer = any(other.keys() <= settings.keys() for other in fitting)  # options do already
                if size <= available.bytes and not fewer:
                    fitting.append(settings)
                    shown.append(f"{' '.join(option(*one) for one in settings.items())} ({memory.gib(size)})")
        if not shown:
            return "use a device with more memory, or a smaller model"
        return f"it would fit with {' or '.join(shown[:_MAX_SHOWN])}"

    parts = _parts(model, mesh, int8, trained, name)
    memory.warn(memory.check(f"loading {path}", parts, available, fix))


def _parts(model: RewardModel, mesh: Mesh, int8: bool, trained: bool, name: str = "") -> dict[str, float]:
    """Returns the bytes of each part, on a device or on the host."""
    size = float(bytes_per_device(sharded_shapes(mesh, model.shapes(quantized=int8), name)))
    if mesh.local_devices[0].platform == "cpu":
        size *= len(mesh.local_devices)
    return {"parameters": size} | ({"moments": 2 * size, "gradients": 2 * size} if trained else {})


def _changes(
    model: RewardModel, mesh: Mesh, int8: bool, fixed: bool, trained: bool
) -> Iterator[tuple[_Settings, float]]:
    """Yields settings of loading with their bytes; those that keep the results come first.

    Args:
      fixed: only the mesh can be changed.
    """
    half: list[_Settings] = [{}] if fixed or model.param_dtype == "bfloat16" else [{}, {"dtype": "bfloat16"}]
    kinds = [*half, *({**kind, "int8": True} for kind in half if not fixed and not int8)]
    made: dict[str, Mesh] = {"": mesh}
    for text in meshes(jax.device_count(), model.decoder.num_kv_heads):
        made[text] = make_mesh(parse_sizes(text))
    for kind in kinds:
        stored = dataclasses.replace(model, param_dtype=kind.get("dtype", model.param_dtype))
        for text, tried in made.items():
            try:
                check_heads(model.decoder, tried)
                parts = _parts(stored, tried, int8 or "int8" in kind, trained)
            except InputError:  # it does not divide the model
                continue
            if kind or text:
                yield ({"mesh": text} if text else {}) | kind, sum(parts.values())
