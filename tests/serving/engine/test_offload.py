"""Which arrays are on the devices, and which threads wait for others, with small arrays."""

import threading
import types

import jax
import jax.numpy as jnp
import pytest

from rmjax.core.errors import InputError
from rmjax.serving.engine import offload
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.metrics import Metrics, ModelMetrics

SIZE = 4 * 8


@pytest.fixture
def counts():
    return Metrics()


def owner():
    return types.SimpleNamespace(params={"kernel": jnp.arange(8, dtype=jnp.float32)})


def kind(model):
    return model.params["kernel"].sharding.memory_kind


def size(counts, model):
    value = lambda where: counts.registry.get_sample_value(f"rmjax_{where}_bytes", {"model": model})
    return value("device"), value("host")


def test_models_are_on_the_devices_in_turn_and_keep_their_values(counts):
    memory = DeviceMemory(offload=True)
    one, two = owner(), owner()
    arrays = [
        memory.register(model, "params", ModelMetrics(counts, name)) for model, name in ((one, "one"), (two, "two"))
    ]
    assert [kind(one), kind(two)] == ["pinned_host"] * 2
    for used, other, index in ((one, two, 0), (two, one, 1), (two, one, 1), (one, two, 0)):
        with memory.resident(arrays[index]):
            assert (kind(used), kind(other)) == ("device", "pinned_host")
            assert used.params["kernel"].tolist() == list(range(8))
        assert kind(used) == "device"  # until another model is used
    assert (size(counts, "one"), size(counts, "two")) == ((SIZE, 0), (0, SIZE))
    with memory.resident():  # frees the devices before a model is loaded
        assert [kind(one), kind(two)] == ["pinned_host"] * 2


def test_without_offload_no_array_is_moved(counts):
    memory, one, two = DeviceMemory(), owner(), owner()
    arrays = [memory.register(model, "params", ModelMetrics(counts, "m")) for model in (one, two)]
    with memory.resident(arrays[0]), memory.resident(arrays[1]):
        assert [kind(one), kind(two)] == ["device"] * 2
    assert size(counts, "m") == (2 * SIZE, 0)


def test_bytes_of_a_replaced_model_are_no_longer_counted(counts):
    memory, old, new = DeviceMemory(offload=True), owner(), owner()
    replaced = memory.register(old, "params", ModelMetrics(counts, "m"))
    arrays = memory.register(new, "params", ModelMetrics(counts, "m"))
    assert size(counts, "m") == (0, 2 * SIZE)
    del replaced
    assert size(counts, "m") == (0, SIZE)
    with memory.resident(arrays):
        assert size(counts, "m") == (SIZE, 0)


def test_no_array_is_moved_while_a_model_runs_or_the_lock_is_held(counts):
    memory, one, two = DeviceMemory(offload=True), owner(), owner()
    arrays = [memory.register(model, "params", ModelMetrics(counts, "m")) for model in (one, two)]
    for hold in (lambda: memory.resident(arrays[0]), lambda: memory.lock):
        done = threading.Event()

        def work(done=done):
            with memory.resident(arrays[1]):
                done.set()

        with hold():
            other = threading.Thread(target=work)
            other.start()
            assert not done.wait(0.2)
            assert kind(one) == "device"
            assert size(counts, "m") == (SIZE, SIZE)  # metrics do not wait
        other.join(10)
        assert done.is_set()
        with memory.resident(arrays[0]):
            pass


def test_devices_without_host_memory_cannot_offload(counts, monkeypatch):
    monkeypatch.setattr(offload, "_HOST", "missing")
    with pytest.raises(InputError, match="expected 'missing' for offload"):
        DeviceMemory(offload=True).register(owner(), "params", ModelMetrics(counts, "m"))


def test_replicas_on_several_devices_are_counted_each(counts):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model = types.SimpleNamespace(params=jax.device_put(jnp.zeros(8), replicated))
    arrays = DeviceMemory().register(model, "params", ModelMetrics(counts, "m"))
    assert arrays.size == 2 * SIZE
