"""The model card of an artifact: README.md with the metadata that the Hugging Face hub reads, and a report's facts."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

FILE = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Validation metrics that are shown, by the first part of their names.
_SHOWN = ("accuracy", "loss", "mse", "pearson", "spearman", "auc")


def facts(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what is known of a model as (name, text) rows: base model, training, data, rewards, limits.

    Args:
      metadata: contents of rmjax.json, or of a pipeline's `metadata`.
    """
    rows = [
        ("base model", metadata.get("source")),
        ("checkpoint", None if (step := metadata.get("source_step")) is None else f"step {step:,}"),
        ("reward head", metadata.get("reward_head") or metadata.get("head")),
        ("rewards", ", ".join(metadata.get("attributes") or ())),
        ("heads", metadata.get("members")),
        ("ensemble", ", ".join((metadata.get("ensemble") or {}).get("models", ()))),
        ("reward read at", metadata.get("pooling")),
        ("longest conversation", f"{length:,} tokens" if (length := metadata.get("max_length")) else None),
        ("validation data", ", ".join(map(str, metadata.get("validation_data") or ()))),
        ("validation", _metrics(metadata.get("validation") or {})),
        ("calibration", json.dumps(found) if (found := metadata.get("calibration")) else None),
        ("license", metadata.get("license") or "not stated; that of the base model and the data applies"),
    ]
    return [(name, str(value)) for name, value in rows if value]


def write(directory: pathlib.Path, metadata: Mapping[str, Any], transformers_class: str | None) -> None:
    """Writes README.md, which may be edited: no checksum covers it.

    Its metadata have `model-index` with the validation metrics, and hub names of base model and data where they are
    such; other names of data are written into the text alone.
    """
    base = str(metadata.get("source") or "")
    data = [str(name) for name in metadata.get("validation_data") or ()]
    metrics = _chosen(metadata.get("validation") or {})
    values: dict[str, Any] = {
        "library_name": "transformers" if transformers_class else "rmjax",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "rmjax"],
    }
    if is_hub_name(base):
        values["base_model"] = base
    if hub := [name for name in data if is_hub_name(name)]:
        values["datasets"] = hub
    if metrics:
        values["model-index"] = _index(directory, data, metrics)
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())  # YAML too
    rows = "".join(f"| {name} | {_cell(text)} |\n" for name, text in facts(metadata))
    (directory / FILE).write_text(
        f"---\n{front}---\n\n# Reward model\n\n| | |\n|---|---|\n{rows}\n## Use\n\n{_usage(transformers_class)}",
        encoding="utf-8",
    )


def is_hub_name(name: str) -> bool:
    """Returns whether a name is of the form OWNER/NAME, and no path of this machine.

    >>> is_hub_name("allenai/reward-bench"), is_hub_name("/data/pairs.jsonl"), is_hub_name("synthetic")
    (True, False, False)
    """
    return _HUB_NAME.fullmatch(name) is not None and not pathlib.Path(name).exists() and not name.startswith(".")


def _index(directory: pathlib.Path, data: Sequence[str], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    names = [pathlib.PurePath(name).name if not is_hub_name(name) else name for name in data] or ["validation data"]
    result = {
        "task": {"type": "text-classification", "name": "Reward modeling"},
        "dataset": {"name": ", ".join(names), "type": names[0], "split": "validation"},
        "metrics": [{"type": name, "name": name, "value": value} for name, value in metrics.items()],
    }
    return [{"name": directory.name.lstrip(".").removesuffix(".part") or "reward-model", "results": [result]}]


def _usage(transformers_class: str | None) -> str:
    call = 'model.score("What is 2 + 2?", [" 4", " 5"])'
    text = f'```python\nimport rmjax\n\nmodel = rmjax.load("PATH")\n{call}\n```\n'
    if transformers_class:
        text += (
            f"\nIt is a `{transformers_class}` for transformers, whose logits are the rewards up to a constant shift "
            "(`transformers_shift` in rmjax.json).\n"
        )
    return text


def _chosen(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {name: value for name, value in metrics.items() if name.partition("/")[0] in _SHOWN}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _metrics(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in _chosen(metrics).items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
