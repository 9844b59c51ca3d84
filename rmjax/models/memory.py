"""Whether the parameters of a model fit in memory, before they are loaded."""

import jax
from jax.sharding import Mesh

from rmjax.core import memory
from rmjax.models.decoder import RewardModel
from rmjax.models.sharding import bytes_per_device, sharded_shapes


def check_parameters(model: RewardModel, mesh: Mesh, name: str) -> None:
    """Warns if the parameters of a model leave little memory on a device; those on CPU devices share the host's.

    Args:
      name: of the model, in messages.

    Raises:
      InputError: they do not fit.
    """
    size = bytes_per_device(sharded_shapes(mesh, jax.eval_shape(model.init, jax.random.key(0))))
    devices, what = mesh.local_devices, f"loading {name}"
    if devices[0].platform == "cpu":
        size, available = size * len(devices), memory.host_memory()
    else:
        available = memory.device_memory(devices[0])
    fix = lambda: "use a device with more memory, or a smaller model"
    memory.warn(memory.check(what, {"parameters": size}, available, fix))
