"""Plans of scoring and serving, compiled for simulated devices; the collectives of the scoring program."""

import importlib
import json

import jax
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, parse_sizes
from rmjax.evaluation.plan import STORED, ScoringPlan, Stored, describe_mesh, plan_scoring
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.int8 import quantize
from rmjax.models.sharding import meshes, state_shardings

LAYERS, WIDTH, LENGTH, ROWS = 3, 64, 128, 2
SERVED = ["--dtype=float32", "--dtype=bfloat16", "--dtype=bfloat16 --int8"]
PROGRAM = importlib.import_module("rmjax.plan")  # `rmjax.plan` may be the function of that name


@pytest.fixture(scope="module")
def model():
    decoder = DecoderConfig(300, WIDTH, 128, LAYERS, 4, 2, 16, 1e-5, 1e4, None, False, False, 512, 0.2)
    return RewardModel(decoder, HeadConfig())


def local_bytes(params, mesh):
    placed = jax.device_put(params, state_shardings(mesh, params))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))


def test_parameters_are_those_that_a_device_holds(model):
    mesh = make_mesh(parse_sizes("tensor=2,fsdp=2"))
    plans = list(plan_scoring(model, "cpu:8", jax.devices(), "tensor=2,fsdp=2", ROWS, LENGTH))
    assert [plan.flags for plan in plans] == [f"{flags} --mesh=tensor=2,fsdp=2" for flags in SERVED]
    params = model.init(jax.random.key(0))
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params["decoder"])
    expected = [params, params | {"decoder": half}, quantize(params | {"decoder": half})]
    for plan, tree in zip(plans, expected, strict=True):
        assert plan.memory["parameters"] == local_bytes(tree, mesh)
        assert (plan.rows, plan.fits) == (ROWS * 4, None)  # data 2 x fsdp 2
        assert plan.memory["batch"] > ROWS * LENGTH * 4 * 4
        assert sum(plan.memory.values()) == plan.peak_bytes
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params["decoder"]["layers"]) if leaf.ndim == 3)
    norms = sum(leaf.size for leaf in jax.tree.leaves(params["decoder"]["layers"])) - matrices
    attention = 4 * LAYERS * 4 * 16 * ROWS * 4 * LENGTH * LENGTH / 2
    assert plans[0].flops == pytest.approx(2 * (matrices + norms) * ROWS * 4 * LENGTH + attention)


def test_tensor_parallelism_reduces_twice_a_layer_and_shards_nothing_else(model):
    plan = next(plan_scoring(model, "cpu:2", jax.devices()[:2], "tensor=2", ROWS, LENGTH))
    activation = ROWS * LENGTH * WIDTH * 4
    # An all-reduce counts twice; beside those of the layers, the head's input may be completed once.
    layers = 2 * 2 * LAYERS * activation
    assert layers <= plan.collectives["all-reduce"] <= layers + 2 * activation
    assert "all-to-all" not in plan.collectives
    # The embedding is split by columns; its output is gathered once.
    assert plan.collectives.get("all-gather", 0) <= 2 * activation


def test_fsdp_gathers_the_weights(model):
    plan = next(plan_scoring(model, "cpu:4", jax.devices()[:4], "fsdp=4", ROWS, LENGTH))
    params = model.init(jax.random.key(0))["decoder"]["layers"]
    matrices = sum(leaf.nbytes for leaf in jax.tree.leaves(params) if leaf.ndim == 3)
    assert plan.collectives["all-gather"] == pytest.approx(matrices, rel=0.3)
    assert plan.collectives.get("all-reduce", 0) < 0.1 * matrices


def test_one_device_communicates_nothing(model):
    plan = next(plan_scoring(model, "cpu:1", jax.devices()[:1], "", ROWS, LENGTH))
    assert not plan.collectives
    assert describe_mesh("", 1) == "one device"


def test_a_mesh_that_does_not_fit_is_named(model):
    with pytest.raises(InputError, match=r"tensor is 4, which does not divide the model's 2 key/value heads"):
        next(plan_scoring(model, "cpu:4", jax.devices()[:4], "tensor=4", ROWS, LENGTH))
    for mesh in meshes(8, 2):
        assert np.prod([size for size in parse_sizes(mesh) if size > 0]) <= 8


def test_the_program_prints_and_writes_plans(tmp_path, capsys, monkeypatch, run_main):
    monkeypatch.setattr(PROGRAM, "topology_devices", lambda name: jax.devices())
    arguments = ["--serve", "--config=configs/binary.py", "--topology=cpu:8", "--mesh=tensor=2", "--max_length=128"]
    run_main("plan", *arguments, "--rows_per_device=1", f"--json={tmp_path / 'plan.json'}")
    printed = capsys.readouterr().out
    assert "cpu:8, 8 devices, mesh: data 4 x tensor 2, 128 tokens" in printed
    plans = json.loads((tmp_path / "plan.json").read_text())
    assert [plan["flags"] for plan in plans] == [f"{flags} --mesh=tensor=2" for flags in SERVED]
    assert all(plan["peak_bytes"] > plan["memory"]["parameters"] > 0 for plan in plans)


def test_only_the_kinds_that_are_asked_for_or_do_not_fit_are_compiled(capsys, monkeypatch, run_main):
    tried, fitting = [], {"tensor=2": [STORED[2]], "fsdp=2": [STORED[0]]}

    def plan(model, topology, devices, mesh, rows, length, kinds):
        tried.append((mesh, list(kinds)))
        if mesh == "tensor=2,fsdp=2":
            raise InputError("does not divide")
        for kind in kinds:
            fits = kind in fitting.get(mesh, [STORED[1]])
            flags = f"{kind.flags} {mesh}"
            yield ScoringPlan("", 4, flags, kind, rows, fits, 2 << 30, 1 << 30, {}, 1.0, {}, {}, 0.0, 0.0)

    monkeypatch.setattr(PROGRAM, "plan_scoring", plan)
    monkeypatch.setattr(PROGRAM, "topology_devices", lambda name: jax.devices()[:4])
    run_main("plan", "--serve", "--config=configs/binary.py", "--topology=cpu:4", "--max_length=128")
    assert tried == [
        ("", list(STORED)),
        ("tensor=2", [STORED[0], STORED[2]]),
        ("tensor=2,fsdp=2", [STORED[0]]),
        ("fsdp=2", [STORED[0]]),
    ]
    assert "--dtype=bfloat16 --int8 tensor=2" in capsys.readouterr().out
    tried.clear()
    run_main("plan", "--serve", "--config=configs/binary.py", "--topology=cpu:4", "--int8", "--nosearch")
    assert tried == [("", [Stored("float32", int8=True)])]
