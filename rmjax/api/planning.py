"""Plans of training for devices that need not be there."""

import jax
import numpy as np

from rmjax.core import config_file
from rmjax.core.chips import parse_topology, topology_devices
from rmjax.core.config import Config
from rmjax.core.config_checks import check
from rmjax.training.plan import Plan
from rmjax.training.planning import Lengths, plan_config, read_lengths


def plan(
    config: Config | str,
    topology: str,
    *,
    tokens_per_comparison: int = 0,
    comparisons: int = 100_000,
    vocab_size: int = 0,
) -> Plan:
    """Returns the memory, FLOPs, communication and least time of a train step, compiled without running it.

    Args:
      config: as for `rmjax.train`. Of `model.path`, only config.json is read.
      topology: chip and shape: `v5e:4x8`, `v5p:4x4x4`, `v6e:2x4`, `v4:2x2x1` (the extra [tpu]), `h100:8` (the extra
        [cuda]), or `cpu:8`, simulated devices, of which this process must have enough once JAX is in use.
      tokens_per_comparison: unique tokens of a comparison; 0: those of config.data.train.
      comparisons: size of the training data, with `tokens_per_comparison`.
      vocab_size: of a model without `model.path`; 0: the tokenizer's, or 32,000 with `tokens_per_comparison`.

    Raises:
      InputError: configuration, mesh and topology do not fit together, or the topology's compiler is missing.
    """
    config = config_file.load(config) if isinstance(config, str) else config
    check(config, data=not tokens_per_comparison)
    parse_topology(topology)
    if tokens_per_comparison:
        lengths, vocabulary = Lengths(np.full(comparisons, tokens_per_comparison)), 32000
    else:
        lengths, vocabulary = read_lengths(config)
    if not topology.startswith("cpu"):
        jax.devices()  # this process keeps its accelerators: a topology is described with CPUs as JAX's only platform
    return plan_config(config, topology, topology_devices(topology), lengths, vocab_size or vocabulary)
