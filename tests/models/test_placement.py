"""Arrays on devices from tensors that are read one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.mesh import make_mesh
from rmjax.models import placement


@pytest.mark.parametrize("whole", [0, 1 << 26])
@pytest.mark.parametrize(
    ("stacked", "spec"),
    [(0, P("fsdp", None, "tensor")), (1, P(None, "fsdp", "tensor")), (2, P(None, "tensor", "fsdp")), (1, P())],
)
def test_each_shard_has_the_values_of_its_tensors(monkeypatch, whole, stacked, spec):
    monkeypatch.setattr(placement, "_WHOLE", whole)
    mesh, reads = make_mesh((2, 2, 2, 1)), []
    values = np.arange(4 * 6 * 8, dtype=np.float64).reshape(4, 6, 8)
    leaf, sharding = jax.ShapeDtypeStruct(values.shape, jnp.float32), NamedSharding(mesh, spec)

    def read(at, index):
        reads.append(at)
        return values[at][index]

    with jax.set_mesh(mesh):
        found = placement.from_tensors(leaf, sharding, stacked, read)
    assert found.sharding == sharding
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, values)
    # The devices of an axis that does not shard the array read together.
    assert len(reads) == placement.num_reads(leaf, sharding, stacked)
    assert len(reads) == {0: 4, 1: 4 * len(set(str(s.index) for s in found.addressable_shards)), 2: 48}[stacked]
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(found)  # the memory is JAX's own
    np.testing.assert_array_equal(doubled, 2 * values)
