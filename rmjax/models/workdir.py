"""The workdir of a training run: its files, its best checkpoint and the metadata of the model in it."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families.llama import from_hugging_face, to_hugging_face
from rmjax.models.sharding import state_shardings

# Keys of `config.data` that decide how a record becomes a conversation and labels; they are stored with the model.
DATA_OPTIONS = ("strings", "step_separator", "step_labels", "ties", "missing_label", "preference_label")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The files of a training run.

    Attributes:
      path: the directory; may not exist yet.
    """

    path: pathlib.Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_file(self) -> pathlib.Path:
        """The resolved configuration; written last by `create`."""
        return self.path / "config.json"

    @property
    def model_file(self) -> pathlib.Path:
        """The decoder's hyperparameters, as a Hugging Face config.json."""
        return self.path / "model.json"

    @property
    def head_file(self) -> pathlib.Path:
        """The reward head's attributes, scale, shift and merge weights."""
        return self.path / "head.json"

    @property
    def data_file(self) -> pathlib.Path:
        """The hash of the training data."""
        return self.path / "data.json"

    @property
    def tokenizer_directory(self) -> pathlib.Path:
        """The tokenizer's files, chat template included."""
        return self.path / "tokenizer"

    @property
    def checkpoint_directory(self) -> pathlib.Path:
        """Orbax's checkpoints, a directory per step."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> pathlib.Path:
        """Training and validation metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_directory(self) -> pathlib.Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def learning_curve_file(self) -> pathlib.Path:
        """The figure of `metrics_file`."""
        return self.path / "learning_curve.svg"

    @property
    def created(self) -> bool:
        """Whether `create` has finished here."""
        return self.config_file.exists()

    @property
    def is_workdir(self) -> bool:
        """Whether the directory is a training run's workdir rather than a model directory."""
        return self.model_file.exists()

    def create(self, config: ml_collections.ConfigDict, model: RewardModel, data_hash: str) -> None:
        """Writes everything that evaluation, export and serving need besides tokenizer and checkpoints."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.model_file.write_text(json.dumps(to_hugging_face(model.decoder), indent=2) + "\n")
        self.data_file.write_text(json.dumps({"train": data_hash}) + "\n")
        self.head_file.write_text(json.dumps(model.head.to_json(), indent=2) + "\n")
        configs.save(config, self.config_file)

    def config(self) -> ml_collections.ConfigDict:
        """Returns the run's configuration."""
        return configs.load(self.config_file)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder's hyperparameters."""
        return from_hugging_face(self.model_file)

    def head(self) -> HeadConfig:
        """Returns the reward head's configuration."""
        return HeadConfig.from_json(read_json(self.head_file))

    def data_options(self) -> tuple[dict[str, Any], int]:
        """Returns the data options that belong to the model, and the longest conversation in tokens."""
        data = self.config().data
        return {name: data[name] for name in DATA_OPTIONS}, data.max_length

    def data_hash(self) -> str | None:
        """Returns the hash of the training data, or None before `create`."""
        return read_json(self.data_file)["train"] if self.data_file.exists() else None

    def validation_metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics stored with a checkpoint, or None if it was made between validations."""
        path = self.checkpoint_directory / str(step) / "metrics" / "metrics"
        return json.loads(path.read_text()) if path.exists() else None

    def best_step(self) -> int:
        """Returns the step of the best checkpoint by `checkpoint.best`, or of the latest if none was validated.

        Raises:
          InputError: there is no checkpoint.
        """
        best = self.config().checkpoint.best
        steps = sorted(int(child.name) for child in self.checkpoint_directory.glob("*") if child.name.isdigit())
        if not steps:
            raise InputError(f"{self.path}: no checkpoint has been saved yet; train further")
        validated = {step: metrics for step in steps if (metrics := self.validation_metrics(step)) is not None}
        score = lambda step: (configs.selection(validated[step], best), -step)
        return max(validated, key=score) if validated else steps[-1]

    def metadata(self) -> dict[str, Any]:
        """Returns the model card of the best checkpoint, as rmjax.json has it: head, source, metrics, data options."""
        config, step = self.config(), self.best_step()
        metrics = self.validation_metrics(step) or {}
        data_options, max_length = self.data_options()
        return read_json(self.head_file) | {
            "source": config.model.path or "random initialisation",
            "source_step": step,
            "validation": metrics,
            "validation_data": list(config.data.validation),
            # Of the best checkpoint's rewards on the validation data; stored, not applied.
            "reward_mean": metrics.get("reward_mean"),
            "reward_std": metrics.get("reward_std"),
            "max_length": max_length,
            "data_options": data_options,
            "dtype": config.model.dtype,
        }

    def restore_params(self, model: RewardModel, mesh: Mesh) -> Params:
        """Returns the parameters of the best checkpoint, without the optimizer's state.

        Raises:
          InputError: there is no checkpoint, or it is damaged.
        """
        path = self.checkpoint_directory / str(self.best_step()) / "state"
        abstract = jax.eval_shape(model.init, jax.random.key(0))
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            state_shardings(mesh, abstract),
        )
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                restore = ocp.args.PyTreeRestore(
                    {"params": target},
                    restore_args=ocp.checkpoint_utils.construct_restore_args({"params": target}),
                    partial_restore=True,
                )
                return checkpointer.restore(path.absolute(), args=restore)["params"]
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"checkpoint {path} cannot be read ({type(error).__name__}: {reason})") from error
