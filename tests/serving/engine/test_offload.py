"""What lies where, and who waits for whom, by small arrays."""

import threading
import types

import jax
import jax.numpy as jnp
import pytest

from rmjax.core.errors import InputError
from rmjax.serving.engine import offload
from rmjax.serving.engine.offload import Memory
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


def test_models_take_turns_and_keep_their_values(counts):
    room = Memory(offload=True)
    one, two = owner(), owner()
    held = [room.hold(model, "params", ModelMetrics(counts, name)) for model, name in ((one, "one"), (two, "two"))]
    assert [kind(one), kind(two)] == ["pinned_host"] * 2
    for mine, other, index in ((one, two, 0), (two, one, 1), (two, one, 1), (one, two, 0)):
        with room.using(held[index]):
            assert (kind(mine), kind(other)) == ("device", "pinned_host")
            assert mine.params["kernel"].tolist() == list(range(8))
        assert kind(mine) == "device"  # it stays until another is needed
    assert (size(counts, "one"), size(counts, "two")) == ((SIZE, 0), (0, SIZE))
    with room.using():  # room for a model that is loaded
        assert [kind(one), kind(two)] == ["pinned_host"] * 2


def test_without_offload_everything_stays(counts):
    room, one, two = Memory(), owner(), owner()
    held = [room.hold(model, "params", ModelMetrics(counts, "m")) for model in (one, two)]
    with room.using(held[0]), room.using(held[1]):
        assert [kind(one), kind(two)] == ["device"] * 2
    assert size(counts, "m") == (2 * SIZE, 0)


def test_bytes_of_a_model_that_was_replaced_are_no_longer_counted(counts):
    room, old, new = Memory(offload=True), owner(), owner()
    held = room.hold(old, "params", ModelMetrics(counts, "m"))
    again = room.hold(new, "params", ModelMetrics(counts, "m"))
    assert size(counts, "m") == (0, 2 * SIZE)
    del held
    assert size(counts, "m") == (0, SIZE)
    with room.using(again):
        assert size(counts, "m") == (SIZE, 0)


def test_nothing_moves_while_somebody_works_or_pauses(counts):
    room, one, two = Memory(offload=True), owner(), owner()
    held = [room.hold(model, "params", ModelMetrics(counts, "m")) for model in (one, two)]
    for hold in (lambda: room.using(held[0]), room.paused):
        done = threading.Event()

        def work(done=done):
            with room.using(held[1]):
                done.set()

        with hold():
            other = threading.Thread(target=work)
            other.start()
            assert not done.wait(0.2)
            assert kind(one) == "device"
            assert size(counts, "m") == (SIZE, SIZE)  # metrics do not wait
        other.join(10)
        assert done.is_set()
        with room.using(held[0]):
            pass


def test_devices_without_host_memory_cannot_offload(counts, monkeypatch):
    monkeypatch.setattr(offload, "_HOST", "attic")
    with pytest.raises(InputError, match="no 'attic' to offload to"):
        Memory(offload=True).hold(owner(), "params", ModelMetrics(counts, "m"))


def test_copies_on_several_devices_count_each(counts):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model = types.SimpleNamespace(params=jax.device_put(jnp.zeros(8), whole))
    held = Memory().hold(model, "params", ModelMetrics(counts, "m"))
    assert held.size == 2 * SIZE
