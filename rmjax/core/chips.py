"""Published figures of accelerator chips, and their topologies without the hardware.

Sources, read in November 2026: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; NVIDIA's H100 data sheet (SXM5, without
sparsity). The link bandwidth is one direction of all links of a chip.
"""

import dataclasses
import os
import pathlib
import re
import sysconfig
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from rmjax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of a chip.

    Attributes:
      memory: bytes of device memory that a program can use; 0: unknown.
      flops: dense bfloat16 FLOP/s at the peak.
      memory_bandwidth: bytes per second.
      link_bandwidth: bytes per second to chips of the same slice or node.
      network_bandwidth: bytes per second to chips beyond it.
      node: chips of a node, beyond which the network is used; 0: all chips of a topology are one slice.
    """

    name: str
    memory: float
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float = 0.0
    node: int = 0


_GIB = 1 << 30
CHIPS = {
    "v4": Chip("TPU v4", 31.75 * _GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip("TPU v5e", 15.75 * _GIB, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95.0 * _GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 31.25 * _GIB, 918e12, 1638e9, 400e9),
    "h100": Chip("NVIDIA H100 SXM5", 79.1 * _GIB, 989e12, 3350e9, 450e9, 50e9, 8),
    "cpu": Chip("CPU, simulated devices", 0.0, 0.0, 0.0, 0.0),
}
# What XLA must know of a GPU that is not there: device properties as the CUDA driver reports them.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_EXAMPLES = "v5e:4x8, v5p:4x4x4, v6e:2x4, v4:2x2x1, h100:8 or cpu:8"


def parse_topology(name: str) -> tuple[Chip, str]:
    """Returns the chip and the shape of a topology such as `v5e:4x8`; raises InputError if there is no such chip."""
    kind, _, shape = name.partition(":")
    pattern = r"\d+" if kind in ("h100", "cpu") else r"\d+(x\d+){1,2}"
    if kind not in CHIPS or not re.fullmatch(pattern, shape):
        raise InputError(f"--topology={name}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, as in {_EXAMPLES}")
    return CHIPS[kind], shape


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Returns descriptions of the devices of a topology, for which programs can be compiled but not run.

    Those of `cpu:N` are N simulated devices, which can also run programs. Called before JAX is used.

    Raises:
      InputError: there is no such topology, or its compiler is not installed.
    """
    _, shape = parse_topology(name)
    kind = name.partition(":")[0]
    if kind == "cpu":
        return _cpu_devices(name, int(shape))
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # no TPU is looked for, none is locked
    try:
        if kind == "h100":
            nvcc = pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia", "cuda_nvcc")
            os.environ["PATH"] = f"{nvcc / 'bin'}:{os.environ['PATH']}"
            flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
            return topologies.get_topology_desc(platform="cuda", target_config=_H100, topology=f"1x1x{shape}").devices
        return topologies.get_topology_desc(name, "tpu").devices
    except Exception as error:  # of the plugin's C++ code: it is missing, or refuses the shape
        extra = "cuda" if kind == "h100" else "tpu"
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--topology={name}: its devices cannot be described ({reason}); install the compiler with "
            f"pip install 'rmjax[{extra}]', and give a shape that exists, as in {_EXAMPLES}"
        ) from error


def _cpu_devices(name: str, count: int) -> Sequence[jax.Device]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX is in use, as in a notebook
        if (found := jax.local_device_count("cpu")) < count:
            raise InputError(
                f"--topology={name}: this process has {found} CPU devices already; expected {count} or more: call "
                f"jax.config.update('jax_num_cpu_devices', {count}) before JAX is used, or restart the session"
            ) from None
    return jax.devices("cpu")[:count]
