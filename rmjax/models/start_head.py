"""The reward head of the model from which a run starts: its configuration, and its weights for the run's scale."""

import dataclasses
import pathlib

import jax.numpy as jnp

from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.models import artifact, heads, members, paths
from rmjax.models.architecture import HeadConfig
from rmjax.models.decoder import Params
from rmjax.models.families import read_config
from rmjax.models.workdir import Workdir


def continue_head(config: Config, head: HeadConfig) -> HeadConfig:
    """Returns `head` with the hidden layer of the head at `config.path`, and its shift (a bias, a normalization).

    A shift of its own is kept.
    """
    found = (find(config.path) if config.path else None) or head
    if len(found.attributes) != len(head.attributes):
        return head
    return dataclasses.replace(head, hidden=found.hidden, shift=head.shift or found.shift)


def find(path: str, *, verify: bool = False) -> HeadConfig | None:
    """Returns the configuration of the head of the model at a path; None if it has none.

    Args:
      verify: check the checksums of an artifact's small files first.
    """
    workdir = Workdir(paths.resolve_path(path))
    if workdir.is_workdir:
        return workdir.head()
    _, decoder = read_config(paths.config_file(workdir.path))
    found = heads.read(paths.tensors(workdir.path), decoder, artifact.read_metadata(workdir.path, verify=verify))
    return found.config if found else None


def check(directory: pathlib.Path, found: HeadConfig, expected: HeadConfig) -> None:
    """Raises InputError if the head found in a directory has other attributes, members or another shift."""
    nameless = len(expected.attributes) == 1 or all(map(heads.is_placeholder, found.attributes))
    same = len(found.attributes) == len(expected.attributes) if nameless else found.attributes == expected.attributes
    if not same:
        raise InputError(
            f"{directory}: the reward head predicts {', '.join(found.attributes)}; the objective expects "
            f"{', '.join(expected.attributes)}: set config.objective.attributes to the head's, merge them into one "
            "(rmjax.export --merge), or start from a model without a reward head"
        )
    if found.members not in (1, expected.members):
        raise InputError(
            f"{directory}: the reward head has {found.members} members; config.model.head_members is "
            f"{expected.members}: set it to {found.members}"
        )
    if found.shift != expected.shift:
        raise InputError(
            f"{directory}: the reward head has the shift {list(found.shift)}; config.objective.standardize needs "
            f"{list(expected.shift)}: set it to False, or start from a model without a reward head"
        )


def rescale(params: Params, found: HeadConfig, expected: HeadConfig) -> Params:
    """Returns the parameters with the head's weights such that the rewards of `found` result with `expected`'s scale.

    Export folds the scale into the weights, so that an artifact of a standardized head has scale 1. Members of a head
    that had one are copies of it.
    """
    if (found.scale, found.members) == (expected.scale, expected.members):
        return params
    ones = (1.0,) * len(expected.attributes)
    ratio = jnp.asarray(found.scale or ones, jnp.float32) / jnp.asarray(expected.scale or ones, jnp.float32)
    kernel = members.fit(params["head"]["kernel"], found.members, expected.members)
    kernel = kernel * jnp.tile(ratio, expected.members)
    return params | {"head": params["head"] | {"kernel": kernel}}
