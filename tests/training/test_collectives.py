"""The collectives of the compiled train step."""

import math
import re

import jax

from rmjax.core import config as configs
from rmjax.core.mesh import make_mesh
from rmjax.training.compilation import StepShape, compile_step, make_trainer

FSDP, TENSOR, LENGTH, WIDTH, HIDDEN = 4, 2, 448, 256, 512
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%[\w.-]+ = (?P<result>.*?) (?P<kind>{KINDS})(?:-start)?\(.*$", re.MULTILINE)
ALONE = re.compile(r"replica_groups=(\{\{\d+\}|\[\d+,1\])")  # a group for each device: nothing is sent


def test_weights_are_gathered_and_activations_are_not():
    """In bfloat16 on a mesh of fsdp 4, tensor 2: a layer has two reductions forward, and no device all tokens."""
    config = configs.default()
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
    config.model.update(sizes | {"dtype": "bfloat16"})
    trainer = make_trainer(config, make_mesh([1, FSDP, TENSOR, 1], jax.devices()), 300)
    text = compile_step(trainer, 1, StepShape(LENGTH, 2, 8, 8)).as_text()
    found = [match for match in COLLECTIVE.finditer(text) if not ALONE.search(match[0])]
    assert {"all-gather", "all-reduce"} <= {match["kind"] for match in found}
    for match in found:
        arrays = re.findall(r"\b(?:f32|bf16|u16)\[([\d,]+)\]", match["result"])
        for shape in (tuple(map(int, array.split(","))) for array in arrays):
            assert math.prod(shape) < FSDP * LENGTH * WIDTH, match[0]
            # The embedding is split by columns, so that a device looks up its columns for all tokens.
            assert FSDP * LENGTH not in shape or "dot_general" not in match[0], match[0]
    layer = [match for match in found if re.search(r'op_name="[^"]*/while/body/jvp\(\)/while/body/', match[0])]
    reductions = [match["result"] for match in layer if match["kind"] == "all-reduce"]
    assert len(reductions) == 2, reductions  # after attention, and after the MLP
    assert all(f"[{LENGTH},{WIDTH}]" in result or f"[1,{LENGTH},{WIDTH}]" in result for result in reductions)
    gathered = {match["result"].split("{")[0] for match in layer if match["kind"] == "all-gather"}
    shard = WIDTH // TENSOR
    expected = {(WIDTH, shard), (shard, WIDTH), (WIDTH, shard // 2), (WIDTH, HIDDEN // 2), (HIDDEN // 2, WIDTH)}
    assert {tuple(map(int, re.findall(r"\d+", name.partition("[")[2]))) for name in gathered} <= expected
