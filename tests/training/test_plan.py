"""Plans of training steps: compiled for simulated devices, and for TPUs where their compiler is installed."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from rmjax.core import config as configs
from rmjax.core.chips import CHIPS, parse_topology
from rmjax.core.compiled import collectives_of
from rmjax.core.errors import InputError
from rmjax.core.mesh import AXES, make_mesh
from rmjax.training.compilation import StepShape, compile_step, make_trainer
from rmjax.training.planning import Lengths, alternatives, plan_config, sweep

LENGTHS = Lengths(np.full(64, 60))


@pytest.fixture
def config():
    config = configs.default()
    config.model.update(hidden_size=64, intermediate_size=128, num_layers=4, num_heads=4, num_kv_heads=2)
    config.data.row_length, config.train.rows_per_device = 256, 1
    config.train.update(batch_size=32, steps=5)
    config.mesh.update(data=1, fsdp=4, tensor=2)
    return config


def test_bytes_and_flops_of_a_plan(config):
    """Parameters and moments are those of the real state; collectives those of sharded parameters and heads."""
    plan = plan_config(config, "cpu:8", jax.devices(), LENGTHS, 300)
    assert (plan.devices, plan.fits) == (8, None)
    assert sum(plan.memory.values()) == plan.peak_bytes
    trainer = make_trainer(config, make_mesh([1, 4, 2, 1]), 300)
    params = trainer.model.init(jax.random.key(0))
    placed = jax.device_put(trainer.init(params), trainer.shardings())
    local = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    assert plan.memory["parameters"] == local(placed["params"])
    assert plan.memory["moments"] == local(placed["opt_state"])
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params["decoder"]["layers"]))
    attention = 12 * 4 * 4 * 16 * (60 * 60 / 2 * 32)
    assert plan.flops == 6 * matrices * 60 * 32 + attention
    assert {"all-gather", "all-reduce"} <= set(plan.collectives)
    one = plan_config(_changed(config, fsdp=1, tensor=1), "cpu:1", jax.devices()[:1], LENGTHS, 300)
    assert not one.collectives
    assert one.flops == plan.flops


def _changed(config, **mesh):
    config = config.copy_and_resolve_references()
    config.mesh.update(mesh)
    return config


def test_the_batch_and_the_gradients_are_in_the_planned_memory(config):
    plan = plan_config(config, "cpu:8", jax.devices(), LENGTHS, 300)
    rows, readouts = 8, 8  # microbatches of a row per device; of four comparisons
    assert rows * 256 * 4 * 4 / 4 < plan.memory["batch"] < rows * (256 * 16 + readouts * 64)
    assert plan.memory["gradients and activations"] > plan.memory["parameters"]
    config.train.rows_per_device = 4
    larger = plan_config(config, "cpu:8", jax.devices(), LENGTHS, 300)
    assert larger.memory["gradients and activations"] > 2 * plan.memory["gradients and activations"]


def test_a_plan_reads_the_reward_where_the_run_does(config):
    mesh = make_mesh([1, 1, 1, 1], jax.devices()[:1])
    assert not make_trainer(config, mesh, 300).model.mean_readout
    config.data.readout = "response_mean"
    assert make_trainer(config, mesh, 300).model.mean_readout


def test_no_array_of_the_step_has_the_vocabulary_for_each_token(config):
    """The language modeling head's logits are never computed: a reward model reads one hidden state."""
    trainer = make_trainer(config, make_mesh([1, 1, 1, 1], jax.devices()[:1]), 1009)
    text = compile_step(trainer, 1, StepShape(192, 2, 8, 8)).as_text()
    shapes = [set(map(int, found.split(","))) for found in re.findall(r"[a-z]\w*\[([\d,]+)\]", text)]
    assert any(1009 in shape for shape in shapes)
    assert any(192 in shape for shape in shapes)
    assert not [shape for shape in shapes if {1009, 192} <= shape]


def test_shards_passed_around_a_ring_are_counted_for_all_its_devices():
    """XLA's loop passes them in both directions and several in an iteration; a device receives all but its own."""
    name = 'metadata={op_name="jit(_step)/while/body/dot"}'
    pairs = "source_target_pairs={{0,2},{2,4},{4,0},{1,3},{3,5},{5,1}}"
    permute = f"(f32[6], f32[6], u32[], u32[]) collective-permute-start(%y), {pairs}"
    text = f"""
%wide.windowed_dot_general_body_ag.1.sunk (p: (f32[6])) -> (f32[6]) {{
  %a = {permute}, channel_id=1, {name}
  %b = {permute}, channel_id=2, {name}
}}
ENTRY %main {{
  %c = {permute}, channel_id=3, {name}
}}
"""
    found = list(collectives_of(text, [7]))
    assert found == [("collective-permute", 7 * 2 * 24.0), ("collective-permute", 7 * 24.0)]


def test_collectives_are_counted_once_per_loop_iteration():
    text = """
%all-reduce-scatter.1 (input: f32[8,4]) -> f32[2,4] {
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%input), channel_id=9
}
ENTRY %main {
  %a = bf16[4,8]{1,0:T(8,128)} all-gather(%x), channel_id=1, metadata={op_name="jit(_step)/while/body/while/body/dot"}
  %b = bf16[4,8]{1,0} all-gather(%x), channel_id=1, metadata={op_name="jit(_step)/while/body/while/body/dot"}
  %c = (f32[2], f32[3,1]) all-reduce(%y, %z), channel_id=2, metadata={op_name="jit(_step)/while/body/sum"}
  %d = f32[2,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(_step)/while/body/x"}
  %e = (f32[6], f32[6], u32[], u32[]) collective-permute-start(%y), channel_id=3
}
"""
    found = dict(collectives_of(text, [3, 5]))
    assert found == {
        "all-gather": 3 * 5 * 32 * 2,
        "all-reduce": 2 * 3 * 5 * 4,
        "reduce-scatter": 3 * 8 * 4,
        "collective-permute": 6 * 4,
    }


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:", "v5e:4", "h100:2x2", "cpu:x"])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(InputError, match=rf"--topology={name}: expected CHIP:SHAPE.*v5e:4x8"):
        parse_topology(name)


def test_a_topology_has_published_figures():
    chip, shape = parse_topology("v5p:4x4x4")
    assert (chip, shape) == (CHIPS["v5p"], "4x4x4")
    assert chip.flops == 459e12


def test_changes_that_need_less_memory_come_in_order_of_their_cost(config):
    config.train.rows_per_device = 4
    config.mesh.update(data=2, fsdp=2, tensor=2)
    changes = [what for what, _ in alternatives(config, 8)]
    assert changes == [
        "train.rows_per_device = 2",
        "train.rows_per_device = 1",
        "mesh.data = 1, mesh.fsdp = 4, train.rows_per_device = 1",
        "model.remat = layer, train.rows_per_device = 1",
        "model.remat = layer, mesh.data = 1, mesh.fsdp = 4, train.rows_per_device = 1",
    ]
    assert config.train.rows_per_device == 4
    for _, changed in sweep(config, 8):
        make_mesh([changed.mesh[axis] for axis in AXES])


def _run(*arguments):
    command = [sys.executable, "-m", "rmjax.plan", "--config=configs/binary.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def test_the_program_prints_and_writes_the_plan(tmp_path):
    file = tmp_path / "plan.json"
    arguments = ("--topology=cpu:4", "--tokens_per_comparison=50", "--config.mesh.data=1", "--config.mesh.fsdp=4")
    no_data = "--config.data.train=('<required>',)"  # as in configurations whose data the user has to give
    result = _run(*arguments, f"--json={file}", "--config.data.row_length=256", no_data)
    assert result.returncode == 0, result.stderr
    assert "cpu:4, 4 devices, mesh: fsdp 4" in result.stdout
    plan = json.loads(file.read_text())
    assert {"fits", "peak_bytes", "hbm_bytes", "flops", "bytes", "collectives", "step_seconds", "mfu"} <= set(plan)
    assert plan["collectives"]["all-gather"] > 0


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (the extra [tpu])")
def test_the_step_is_compiled_for_tpus():
    """Of layers and microbatches in loops, each kernel is called once; no array has T x T or all devices' tokens."""
    program = """
from rmjax.core import config as configs
from rmjax.core.chips import topology_devices
from rmjax.core.mesh import make_mesh
from rmjax.training.compilation import StepShape, compile_step, make_trainer

config = configs.default()
config.model.update(hidden_size=256, intermediate_size=512, num_layers=3, num_heads=4, num_kv_heads=2, dtype="bfloat16")
trainer = make_trainer(config, make_mesh([1, 4, 1, 1], topology_devices("v5e:2x2")), 300)
print(compile_step(trainer, 1, StepShape(4096, 2, 8, 8)).as_text())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    text = result.stdout
    assert len(re.findall(r'custom_call_target="tpu_custom_call"', text)) == 3
    assert not re.search(r"\[(?:\d+,)*4096,4096\]", text)
    assert not re.search(r"\[(?:\d+,)*(?:16384,256|4,4096,256)\]", text)
