"""Optimizers: stacked layers are updated as if each were a parameter of its own; the learning rate decays by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.core import config as configs
from rmjax.core import pytree
from rmjax.core.mesh import make_mesh
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig
from rmjax.models.sharding import state_shardings
from rmjax.training.optimizer import make_optimizer

RATE = 0.01


def make(name, **options):
    config = configs.default().optimizer
    config.name = name
    config.update(options)
    return make_optimizer(config, optax.constant_schedule(RATE), num_layers=2)


def tree(kernel, bias, others):
    return {
        "decoder": {"layers": {"up": {"kernel": kernel, "bias": bias}}, "embedding": {"weight": others}},
        "head": {"kernel": others[:, :1]},
    }


def random_tree(seed, scales=(1.0, 1.0)):
    """Returns parameters or gradients of two layers, each multiplied by its scale."""
    random = np.random.default_rng(seed)
    scales = np.array(scales)
    kernel = scales[:, None, None] * random.normal(size=(2, 128, 160))
    return jax.tree.map(
        jnp.float32, tree(kernel, scales[:, None] * random.normal(size=(2, 160)), random.normal(size=(128, 128)))
    )


def updates_of(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
    return updates


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_layers_are_updated_one_by_one(name):
    """The layers' gradients differ in size, and layer 1 alone gives the same update as layer 1 of both."""
    optimizer = make(name, weight_decay=0.1)
    params, gradients = random_tree(0, (1.0, 3.0)), [random_tree(seed, (1.0, 100.0)) for seed in (1, 2)]
    select = lambda layer: lambda path, leaf: leaf[layer : layer + 1] if "/layers/" in path else leaf
    whole = updates_of(optimizer, params, gradients)
    for layer in (0, 1):
        alone = updates_of(
            optimizer,
            pytree.map_with_path(select(layer), params),
            [pytree.map_with_path(select(layer), gradient) for gradient in gradients],
        )
        for path, leaf in pytree.flatten(alone).items():
            found = pytree.flatten(whole)[path]
            np.testing.assert_allclose(found[layer : layer + 1] if "/layers/" in path else found, leaf, atol=1e-7)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_experts_are_updated_one_by_one(name):
    random = np.random.default_rng(0)
    scales = np.array([1.0, 100.0])[:, None, None]
    params, gradient = (jnp.float32(scale * random.normal(size=(1, 2, 128, 160))) for scale in (1.0, scales))
    of_experts = lambda kernel: {"decoder": {"layers": {"mlp": {"experts": {"up": {"kernel": kernel}}}}}}
    of_mlp = lambda kernel: {"decoder": {"layers": {"mlp": {"up": {"kernel": kernel}}}}}
    optimizer = make(name)
    whole = updates_of(optimizer, of_experts(params), [of_experts(gradient)])
    for expert in (0, 1):
        alone = updates_of(optimizer, of_mlp(params[:, expert]), [of_mlp(gradient[:, expert])])
        found = pytree.flatten(whole)["decoder/layers/mlp/experts/up/kernel"][:, expert]
        np.testing.assert_allclose(found, pytree.flatten(alone)["decoder/layers/mlp/up/kernel"], atol=1e-7)


def test_muon_orthogonalizes_the_layers_matrices_alone():
    params, gradient = random_tree(0), random_tree(1)
    updates = updates_of(make("muon"), params, [gradient])
    kernel = np.asarray(updates["decoder"]["layers"]["up"]["kernel"][0])
    values = np.linalg.svd(kernel, compute_uv=False)
    assert (
        values.max() / values.min() < 2.5
    )  # Newton-Schulz: between 0.7 and 1.2; the gradient's differ by a factor of 20
    assert float(np.sqrt((kernel**2).mean())) == pytest.approx(0.2 * RATE, rel=0.2)
    adam = updates_of(make("adamw"), params, [gradient])
    for path in ("decoder/embedding/weight", "head/kernel", "decoder/layers/up/bias"):
        np.testing.assert_allclose(pytree.flatten(updates)[path], pytree.flatten(adam)[path], rtol=1e-4)


def test_the_learning_rate_decays_by_layer():
    """Lion's first update is -rate · sign(gradient): 1 for the head, decay^1 and decay^2 for layers, decay^3 below."""
    gradient = jax.tree.map(jnp.ones_like, random_tree(0))
    updates = updates_of(make("lion", layer_decay=0.5), random_tree(0), [gradient])
    layers = updates["decoder"]["layers"]["up"]
    np.testing.assert_allclose(updates["head"]["kernel"], -RATE, rtol=1e-6)
    for layer, factor in enumerate((0.25, 0.5)):
        np.testing.assert_allclose(layers["kernel"][layer], -RATE * factor, rtol=1e-6)
        np.testing.assert_allclose(layers["bias"][layer], -RATE * factor, rtol=1e-6)
    np.testing.assert_allclose(updates["decoder"]["embedding"]["weight"], -RATE * 0.125, rtol=1e-6)


@pytest.mark.parametrize(("rank", "experts"), [(0, 0), (4, 0), (0, 4)])
@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_the_state_of_every_optimizer_can_be_sharded(name, rank, experts):
    decoder = DecoderConfig(150, 128, 256, 2, 4, 2, 32, 1e-5, 1e4, None, True, True, 512, 0.2)
    decoder = dataclasses.replace(decoder, num_experts=experts, experts_per_token=2)
    model = RewardModel(decoder, HeadConfig(), lora=LoraConfig(rank, 8.0) if rank else None)
    abstract = jax.eval_shape(lambda: make(name).init(model.init(jax.random.key(0))))
    mesh = make_mesh([1, 2, 2, 1], devices=jax.devices()[:4])
    for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(state_shardings(mesh, abstract)), strict=True):
        sharding.shard_shape(leaf.shape)  # raises if it does not divide the shape
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract)]
    if name == "adafactor":
        assert sum(sizes) < 0.2 * sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0))))
