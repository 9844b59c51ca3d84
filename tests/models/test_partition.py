"""The rule `train.trainable`, the dtypes of trained and frozen parameters, and the checksum of the latter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core import config as configs
from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.models import partition
from rmjax.models.lora import LoraConfig
from tests.models.test_lora import make_plain_model as make_model


def make_config(rule, rank=0):
    config = configs.default()
    config.train.trainable, config.lora.rank = rule, rank
    return config


def trained_paths(rule, rank=0):
    config = make_config(rule, rank)
    model = dataclasses.replace(make_model(), lora=LoraConfig.from_config(config.lora))
    partition.check(config, model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    trained, frozen = partition.split(shapes, partition.trainable_pattern(config))
    assert pytree.flatten(pytree.merge(trained, frozen)) == pytree.flatten(shapes)
    return set(pytree.flatten(trained)), set(pytree.flatten(shapes))


@pytest.mark.parametrize(
    ("rule", "rank", "condition"),
    [
        ("", 0, lambda path: True),
        ("all", 2, lambda path: True),
        ("head", 0, lambda path: path == "head/kernel"),
        ("", 2, lambda path: path == "head/kernel" or "lora" in path),
        ("lora", 2, lambda path: path == "head/kernel" or "lora" in path),
        ("^head/|norm", 0, lambda path: path == "head/kernel" or "norm" in path),
    ],
)
def test_the_rule_selects_parameters(rule, rank, condition):
    trained, paths = trained_paths(rule, rank)
    assert trained == set(filter(condition, paths))


@pytest.mark.parametrize(
    ("rule", "rank", "message"),
    [
        ("lora", 0, "is 'lora' and config.lora.rank is 0; set the rank"),
        ("head", 2, "'head', which leaves the adapters untrained"),
        ("nothing", 0, "is 'nothing', which matches no parameter: decoder/embedding/weight, "),
        ("(", 0, r"is '\(', not a regular expression .* expected all, head, lora, or a regex"),
    ],
)
def test_a_rule_that_fits_nothing_is_named(rule, rank, message):
    with pytest.raises(InputError, match=message):
        trained_paths(rule, rank)


def test_trained_parameters_are_float32_and_frozen_ones_in_the_dtype_of_the_model():
    model = dataclasses.replace(make_model(), param_dtype="bfloat16", lora=LoraConfig(2, 4.0))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.init(jax.random.key(0)))
    trained, frozen = partition.store(params, partition.trainable_pattern(make_config("lora", 2)), model)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checksum_depends_on_values_and_their_places_but_not_on_sharding(dtype):
    x = jax.random.normal(jax.random.key(0), (4, 8, 6)).astype(dtype)
    mesh = make_mesh([1, 2, 2, 1], devices=jax.devices()[:4])
    sharded = jax.device_put(x, NamedSharding(mesh, P(None, "fsdp", "tensor")))
    original = partition.checksum({"a": x})
    assert partition.checksum({"a": sharded}) == original
    next_value = np.asarray(x).copy()
    next_value[1, 2, 3] = np.nextafter(next_value[1, 2, 3], np.asarray(10, next_value.dtype))
    for other in ({"b": x}, {"a": x[::-1]}, {"a": x.reshape(8, 4, 6)}, {"a": jnp.asarray(next_value)}):
        assert partition.checksum(other) != original
