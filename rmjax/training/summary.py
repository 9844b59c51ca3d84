"""The lines that a run prints at its start and at its end."""

import shlex
from collections.abc import Sequence

import jax

from rmjax.core.config import Config, selection_metric
from rmjax.core.text import count_of
from rmjax.data.records.read import SYNTHETIC
from rmjax.data.records.sources import Source
from rmjax.models.decoder import RewardModel
from rmjax.models.workdir import Workdir
from rmjax.training import loop
from rmjax.training.step import Trainer


def start_lines(
    config: Config, model: RewardModel, trainer: Trainer, splits: Sequence[loop.Split], workdir: Workdir, step: int
) -> list[str]:
    """Returns the lines about the model, its attributes and the plan of a run that is at `step`.

    Args:
      model: the whole one, also where `trainer` trains the head on features.
    """
    plan, mesh, head = splits[0].plan, trainer.mesh, model.head
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    total = size(model.shapes())
    trained = size(trainer.abstract_state()["params"])
    share = f" ({trained:,} trained)" if trained < total else ""
    unit = "tokens" if trainer.model is model else "features"
    lines = []
    if step:
        ended = f"{workdir} holds the complete run of {count_of(step, 'step')}"
        lines.append(f"resuming {workdir} at step {step} of {plan.num_steps}" if step < plan.num_steps else ended)
    lines.append(
        f"model: {total / 1e6:,.1f}M parameters{share}, {config.model.dtype}; mesh: {dict(mesh.shape)} on "
        f"{mesh.devices.flat[0].device_kind}"
    )
    if scaling := model.decoder.describe_scaling():
        lines.append(scaling)
    if len(head.attributes) > 1:
        weights = zip(head.attributes, trainer.objective.merge, strict=True)
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in weights)
        lines.append(f"attributes and their merge weights: {shown}")
    lines.append(
        f"plan: {count_of(plan.num_steps, 'step')} of {count_of(plan.batch_size, 'comparison')}, rows of "
        f"{plan.row_length} {unit} ({plan.sizes.fill:.0%} filled), up to "
        f"{count_of(plan.sizes.microbatches, 'microbatch', 'microbatches')} of {count_of(plan.microbatch_rows, 'row')} "
        f"per step; {count_of(len(splits[1].dataset), 'validation comparison')}"
    )
    return [*lines, f"workdir: {workdir}"]


def end_lines(
    config: Config, result: loop.TrainingResult, validation: Sequence[str | Source], workdir: Workdir, steps: int
) -> list[str]:
    """Returns the lines about the result of a run of `steps` steps; `validation` are its sources.

    The last line names the best checkpoint and its metric.
    """
    if result.stopped:
        return [
            f"stopped at step {result.step} of {steps} after saving a checkpoint; the same command with "
            f"{shlex.quote(f'--workdir={workdir}')} resumes"
        ]
    line = f"done: {count_of(steps, 'step')}, validation {loop.summarize(result.validation)}"
    if "accuracy_ceiling" in result.validation:
        share = result.validation["accuracy"] / result.validation["accuracy_ceiling"]
        line += f"; {share:.1%} of the best reachable accuracy" if share < 1 else "; the best reachable accuracy"
    command = lambda program, *flags: f"python -m rmjax.{program} {shlex.join(flags)}"
    data = _data_flags(config, validation)
    return [
        line,
        f"written:  {workdir}/ (training_report.html, config.json, metrics.jsonl, tensorboard/, checkpoints/)",
        f"evaluate: {command('evaluate', f'--model={workdir}', *data, f'--output={workdir}/evaluation')}",
        f"export:   {command('export', f'--workdir={workdir}', f'--output={workdir}/artifact')}",
        f"serve:    {command('serve', f'--model={workdir}/artifact', '--grpc_port=8001')}",
        f"best checkpoint: {_best(config, workdir)}; these commands use it",
    ]


def _data_flags(config: Config, validation: Sequence[str | Source]) -> list[str]:
    """Returns the flags with which rmjax.evaluate reads the validation data."""
    if any(isinstance(source, Source) and source.held is not None for source in validation):
        return ["--data=FILE"]
    format = config.data.format
    if format == "auto" and SYNTHETIC in validation and config.data.synthetic_format != "pairs":
        format = config.data.synthetic_format
    flags = [f"--data={','.join(map(str, validation))}"]
    flags += [f"--format={format}"] if format != "auto" else []
    return flags + ([f"--columns={','.join(config.data.columns)}"] if config.data.columns else [])


def _best(config: Config, workdir: Workdir) -> str:
    """Returns the step of the best checkpoint, and the metric by which it was selected."""
    step = workdir.best_step()
    if (metrics := workdir.validation_metrics(step)) is None:
        return f"step {step}"
    name = selection_metric(metrics, config.checkpoint.best)
    return f"step {step}, {name} {metrics[name]:.4f}"
