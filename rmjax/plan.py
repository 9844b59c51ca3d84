"""Compiles the train step of a configuration for devices that need not be there, and says whether and how fast it runs.

    python -m rmjax.plan --config=FILE --topology=v5p:4x4x4 [--config.train.rows_per_device=1 ...] [--json=FILE]
    python -m rmjax.plan --serve --config=FILE --topology=v5e:2x2 [--mesh=tensor=4] [--max_length=2048] [--json=FILE]

Topologies: v4, v5e, v5p and v6e with their shapes (with the extra [tpu]), h100:N (with the extra [cuda]), and cpu:N, N
simulated devices. No weights are loaded: of `model.path`, only config.json is read. The training data is read and
tokenized for its lengths, unless --tokens_per_comparison is given. Without --nosearch, changes that need less memory
are tried in turn if the step does not fit. --sweep compiles several meshes, rematerialization policies and numbers of
rows, and ranks them.

With --serve, the program that scores full batches is compiled instead, for float32, bfloat16 and int8 weights (or for
the kind of --dtype and --int8), as
rmjax.serve, rmjax.score and rmjax.evaluate run it; the model is that of --config (its `model.path`, or its sizes).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from rmjax.core import program
from rmjax.core.chips import parse_topology, topology_devices
from rmjax.core.config import Config
from rmjax.core.config_checks import check
from rmjax.core.errors import InputError
from rmjax.core.files import write_atomic
from rmjax.evaluation.plan import STORED, ScoringPlan, Stored, describe_mesh, plan_scoring
from rmjax.models.architecture import HeadConfig
from rmjax.models.loading import make_model
from rmjax.models.sharding import meshes
from rmjax.training.datasets import load_tokenizer
from rmjax.training.plan import Plan
from rmjax.training.planning import Lengths, alternatives, plan_config, read_lengths, sweep

FLAGS = program.Flags()
_CONFIG = FLAGS.config("Configuration file of a training run; --config.section.key=value overrides.")
_TOPOLOGY = FLAGS.string("topology", "", "Chip and shape, such as v5e:4x8, v5p:4x4x4, h100:8 or cpu:8.")
_JSON = FLAGS.string("json", "", "File for the plan as JSON.")
_TOKENS = FLAGS.integer(
    "tokens_per_comparison", 0, "Unique tokens of a comparison; 0: those of config.data.train.", lower_bound=0
)
_COMPARISONS = FLAGS.integer(
    "comparisons", 100_000, "Size of the training data with --tokens_per_comparison.", lower_bound=1
)
_VOCABULARY = FLAGS.integer("vocab_size", 0, "Vocabulary of a model without model.path; 0: the tokenizer's.")
_SEARCH = FLAGS.bool("search", True, "Try changes that need less memory if the step does not fit.")
_SWEEP = FLAGS.bool("sweep", False, "Rank meshes, rematerialization policies and rows per device.")
_SERVE = FLAGS.bool("serve", False, "Plan scoring and serving instead of training.")
_MESH = FLAGS.string("mesh", "", program.MESH_HELP)
_DTYPE = FLAGS.enum("dtype", None, ["float32", "bfloat16"], "Stored weights to plan, for --serve; default: all kinds.")
_INT8 = FLAGS.bool("int8", None, "Whether the layers' matrices are int8, for --serve; default: all kinds.")
_MAX_LENGTH = FLAGS.integer("max_length", 0, "Tokens of a conversation, for --serve; 0: config.data.max_length.")
_ROWS = FLAGS.integer("rows_per_device", 8, "Rows of a scoring batch on each device, for --serve.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Prints the plan of --config on --topology."""
    config = _CONFIG.value
    if config is None:
        raise InputError("--config is missing; start with --config=configs/binary.py")
    if not _TOPOLOGY.value:
        raise InputError("--topology is missing; give a chip and a shape, such as --topology=v5e:4x8")
    parse_topology(_TOPOLOGY.value)
    jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is used
    check(config, data=not (_TOKENS.value or _SERVE.value))
    if _SERVE.value:
        _plan_serving(config)
        return
    if _TOKENS.value:
        lengths, vocabulary = Lengths(np.full(_COMPARISONS.value, _TOKENS.value)), _VOCABULARY.value or 32000
    else:
        lengths, vocabulary = read_lengths(config)
    devices = topology_devices(_TOPOLOGY.value)
    make = lambda config: plan_config(config, _TOPOLOGY.value, devices, lengths, _VOCABULARY.value or vocabulary)
    plan = make(config)
    print(describe(plan, config))
    if _JSON.value:
        write_atomic(pathlib.Path(_JSON.value), json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
    if _SWEEP.value:
        print("\n" + rank([(what, make(changed)) for what, changed in sweep(config, len(devices))]))
    elif plan.fits is False and _SEARCH.value:
        print(search(alternatives(config, len(devices)), make))


def _plan_serving(config: Config) -> None:
    """Prints the plans of scoring with the model of a configuration."""
    devices, length = topology_devices(_TOPOLOGY.value), _MAX_LENGTH.value or config.data.max_length
    vocabulary = _VOCABULARY.value or (0 if config.model.path else len(load_tokenizer(config)))
    model = make_model(config.model, vocabulary, HeadConfig(tuple(config.objective.attributes) or ("reward",)))
    model = dataclasses.replace(model, decoder=model.decoder.for_length(length))
    mesh, rows, plans = _MESH.value, _ROWS.value, list[ScoringPlan]()

    def plan(mesh: str, rows: int, kinds: Sequence[Stored]) -> Iterator[ScoringPlan]:
        return plan_scoring(model, _TOPOLOGY.value, devices, mesh, rows, length, kinds)

    print(f"{_TOPOLOGY.value}, {len(devices)} devices, mesh: {describe_mesh(mesh, len(devices))}, {length} tokens")
    for found in plan(mesh, rows, _stored()):
        plans.append(found)
        print(describe_scoring(found), flush=True)
    missing = [found.stored for found in plans if found.fits is False]
    if _SEARCH.value and missing:
        options = [(mesh, rows) for mesh in meshes(len(devices), model.decoder.num_kv_heads)]
        plans += search_meshes(plan, missing, [*options, *((mesh, 1) for mesh, _ in options if rows > 1)])
    if _JSON.value:
        text = json.dumps([dataclasses.asdict(found) for found in plans], indent=2) + "\n"
        write_atomic(pathlib.Path(_JSON.value), text)


def _stored() -> Sequence[Stored]:
    """Returns the kinds of stored weights to plan: those of --dtype and --int8, by default all."""
    if _DTYPE.value is None and _INT8.value is None:
        return STORED
    return [Stored(_DTYPE.value or "float32", bool(_INT8.value))]


def search_meshes(
    plan: Callable[[str, int, Sequence[Stored]], Iterator[ScoringPlan]],
    missing: Sequence[Stored],
    options: Sequence[tuple[str, int]],
) -> Iterator[ScoringPlan]:
    """Yields the first plan that fits of each kind of stored weights that is missing, and prints it.

    Args:
      plan: returns the plans of a mesh, rows per device, and kinds; only kinds that are still missing are compiled.
      options: meshes and rows per device, in the order in which they are tried.
    """
    left = list(missing)
    for mesh, rows in options:
        try:
            fitting = [found for found in plan(mesh, rows, left) if found.fits]
        except InputError as error:
            print(f"  --mesh={mesh}: {error}")
            continue
        for found in fitting:
            left.remove(found.stored)
            print(f"fits with --rows_per_device={rows}:\n{describe_scoring(found)}", flush=True)
            yield found
        if not left:
            return
    for kind in left:
        print(f"{kind.flags}: no mesh found with which it fits: use more or larger chips")


def describe_scoring(plan: ScoringPlan) -> str:
    """Returns the lines that show a plan of scoring."""
    lines = [
        f"{plan.flags}",
        f"  {_memory_line(plan)}",
        f"  batch of {plan.rows} rows: {plan.flops:.3g} FLOP; collectives per device: {_received(plan)}",
    ]
    if plan.batch_seconds:
        bounds = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in plan.seconds.items())
        lines.append(
            f"  roofline: at least {plan.batch_seconds:.3g} s per batch ({bounds}), at most "
            f"{plan.conversations_per_second:,.1f} conversations/s"
        )
    return "\n".join(lines)


def search(changes: Iterator[tuple[str, Config]], make) -> str:
    """Returns the first change with which the step fits, with its plan's headline."""
    for what, changed in changes:
        try:
            plan = make(changed)
        except InputError as error:
            print(f"  {what}: {error}")
            continue
        print(f"  {what}: {_size(plan.peak_bytes)}, {'fits' if plan.fits else 'does not fit'}", flush=True)
        if plan.fits:
            return f"cheapest change found: {what} ({plan.step_seconds:.2f} s per step, MFU {plan.mfu:.0%})"
    return "no change found with which it fits: use more or larger chips, or train adapters (lora.rank)"


def rank(plans: Sequence[tuple[str, Plan]]) -> str:
    """Returns a table of plans, those that fit first, the fastest first."""
    rows = [f"{'peak':>10}  {'step':>8}  {'MFU':>5}  change"]
    for what, plan in sorted(plans, key=lambda item: (item[1].fits is False, item[1].step_seconds)):
        note = "" if plan.fits is not False else "  (does not fit)"
        rows.append(f"{_size(plan.peak_bytes):>10}  {plan.step_seconds:>6.2f} s  {plan.mfu:>5.0%}  {what}{note}")
    return "\n".join(rows)


def describe(plan: Plan, config: Config) -> str:
    """Returns the lines that show a plan."""
    mesh = " x ".join(f"{axis} {config.mesh[axis]}" for axis in config.mesh if config.mesh[axis] != 1) or "one device"
    lines = [
        f"{plan.topology}, {plan.devices} devices, mesh: {mesh}",
        _memory_line(plan),
        f"step: {plan.flops:.3g} FLOP, {plan.bytes:.3g} bytes of memory traffic per device",
        f"collectives per device and step: {_received(plan)}"
        + ("; they cross the network between nodes" if plan.slow_collectives else ""),
    ]
    if plan.step_seconds:
        bounds = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in plan.seconds.items())
        lines += [
            f"roofline: at least {plan.step_seconds:.3g} s per step ({bounds}), MFU at most {plan.mfu:.0%}",
            f"throughput: at most {plan.tokens_per_second:,.0f} tokens/s, {plan.comparisons_per_second:,.1f} "
            f"comparisons/s; the run: {plan.device_hours:,.1f} chip hours",
        ]
    return "\n".join(lines)


def _memory_line(plan: Plan | ScoringPlan) -> str:
    verdict = {True: "fits", False: "DOES NOT FIT", None: "the memory of these devices is not known"}[plan.fits]
    available = f" of {_size(plan.hbm_bytes)}" if plan.hbm_bytes else ""
    parts = ", ".join(f"{name} {_size(size)}" for name, size in plan.memory.items())
    return f"memory: {_size(plan.peak_bytes)}{available} per device, {verdict}: {parts}"


def _received(plan: Plan | ScoringPlan) -> str:
    return ", ".join(f"{kind} {_size(size)}" for kind, size in plan.collectives.items()) or "none"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 1e8 else f"{size / 2**20:.2f} MiB"


if __name__ == "__main__":
    program.run(main, FLAGS)
