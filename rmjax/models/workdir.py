"""The workdir of a training run: its files, its best checkpoint and the metadata of the model in it."""

import itertools
import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rmjax.core import config as configs
from rmjax.core.errors import InputError, checkpoint_error
from rmjax.core.files import read_json, write_atomic
from rmjax.models import partition
from rmjax.models.architecture import HeadConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES
from rmjax.models.sharding import sharded_shapes

# Keys of `config.data` that determine how a record becomes conversations and labels; stored with the model.
DATA_OPTIONS = (
    *("strings", "step_separator", "step_readout", "step_labels"),
    *("ties", "missing_label", "preference_label", "label_field"),
)


class Workdir:
    """The files of a training run in the directory `path`, which need not exist yet."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.config_file = path / "config.json"  # the run's resolved configuration; `create` writes it last
        self.model_file = path / "model.json"  # the decoder's hyperparameters, as a Hugging Face config.json
        self.head_file = path / "head.json"  # the reward head's attributes, scale, shift and merge weights
        self.data_file = path / "data.json"  # the hash of the training data
        self.frozen_file = (
            path / "frozen.json"
        )  # where the frozen parameters are, and their checksum; see `save_frozen`
        self.tokenizer_directory = path / "tokenizer"  # the tokenizer's files, including the chat template
        self.checkpoint_directory = path / "checkpoints"  # Orbax checkpoints, one directory per step
        self.metrics_file = path / "metrics.jsonl"  # training and validation metrics, one JSON object per line
        self.tensorboard_directory = path / "tensorboard"  # TensorBoard event files
        self.learning_curve_file = path / "learning_curve.svg"  # a figure of `metrics_file`

    @classmethod
    def unused(cls, name: str) -> "Workdir":
        """Returns runs/NAME-N with the smallest N from 1 that does not exist."""
        paths = (pathlib.Path("runs") / f"{name}-{number}" for number in itertools.count(1))
        return cls(next(path for path in paths if not path.exists()))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def created(self) -> bool:
        """Whether `create` has completed."""
        return self.config_file.exists()

    @property
    def is_workdir(self) -> bool:
        """Whether the directory is the workdir of a run rather than a model directory."""
        return self.model_file.exists()

    def create(self, config: configs.Config, model: RewardModel, data_hash: str) -> None:
        """Writes everything that evaluation, export and serving need, except the tokenizer and the checkpoints."""
        self.path.mkdir(parents=True, exist_ok=True)
        decoder = FAMILIES[model.family].write_config(model.decoder)
        self.model_file.write_text(json.dumps(decoder, indent=2) + "\n")
        self.data_file.write_text(json.dumps({"train": data_hash}) + "\n")
        self.head_file.write_text(json.dumps(model.head.to_json(), indent=2) + "\n")
        configs.save(config, self.config_file)

    def config(self) -> configs.Config:
        """Returns the run's configuration."""
        return configs.load(self.config_file)

    def head(self) -> HeadConfig:
        """Returns the reward head's configuration."""
        return HeadConfig.from_json(read_json(self.head_file))

    def data_options(self) -> tuple[dict[str, Any], int]:
        """Returns the model's data options, and the maximum length of a conversation in tokens."""
        data = self.config().data
        return {name: data[name] for name in DATA_OPTIONS}, data.max_length

    def data_hash(self) -> str | None:
        """Returns the hash of the training data, or None before `create`."""
        return read_json(self.data_file)["train"] if self.data_file.exists() else None

    def validation_metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics stored with a checkpoint; None if it was saved between validations."""
        path = self.checkpoint_directory / str(step) / "metrics" / "metrics"
        return json.loads(path.read_text()) if path.exists() else None

    def best_step(self) -> int:
        """Returns the step of the best checkpoint by `config.checkpoint.best`, or of the latest if none has metrics.

        Raises:
          InputError: there is no checkpoint.
        """
        best = self.config().checkpoint.best
        steps = sorted(int(child.name) for child in self.checkpoint_directory.glob("*") if child.name.isdigit())
        if not steps:
            raise InputError(f"{self}: no checkpoint has been saved yet; continue the training run")
        validated = {step: metrics for step in steps if (metrics := self.validation_metrics(step)) is not None}
        score = lambda step: (configs.selection_score(validated[step], best), -step)
        return max(validated, key=score) if validated else steps[-1]

    def metadata(self) -> dict[str, Any]:
        """Returns the metadata of the best checkpoint for rmjax.json: head, source, metrics, data options."""
        config, step = self.config(), self.best_step()
        metrics = self.validation_metrics(step) or {}
        data_options, max_length = self.data_options()
        return read_json(self.head_file) | {
            "source": config.model.path or "random initialization",
            "source_step": step,
            "validation": metrics,
            "validation_data": list(config.data.validation),
            # Of the rewards on the validation data; stored, not applied.
            "reward_mean": metrics.get("reward_mean"),
            "reward_std": metrics.get("reward_std"),
            "max_length": max_length,
            "data_options": data_options,
            "template_date": config.data.template_date or None,
            "dtype": config.model.dtype,
        }

    def save_frozen(self, path: str, frozen: Params) -> None:
        """Writes where the frozen parameters of the run are, and a checksum of them.

        Args:
          path: `model.path` of the run; empty if they are those of the random initialization.
        """
        local = pathlib.Path(path).expanduser()
        path = str(local.absolute()) if path and local.is_dir() else path
        checksum = partition.checksum(frozen)  # in every process
        if jax.process_index() == 0:
            write_atomic(self.frozen_file, json.dumps({"path": path, "checksum": checksum}) + "\n")

    def frozen_path(self) -> str:
        """Returns the path or hub name of the model that has the frozen parameters."""
        return read_json(self.frozen_file)["path"]

    def check_frozen(self, frozen: Params) -> None:
        """Raises InputError if these are not the frozen parameters of the run."""
        saved = read_json(self.frozen_file)
        if partition.checksum(frozen) != saved["checksum"]:
            raise InputError(
                f"{self}: the parameters that were not trained are those of {saved['path'] or 'the initialization'}, "
                "which have changed since the run began (the checksum differs); restore them"
            )

    def restore_params(self, model: RewardModel, mesh: Mesh) -> Params:
        """Returns the trained parameters of the best checkpoint, without the optimizer's state.

        Raises:
          InputError: there is no checkpoint, or it is damaged.
        """
        path = self.checkpoint_directory / str(self.best_step()) / "state"
        trained, _ = partition.split(
            jax.eval_shape(model.init, jax.random.key(0)), partition.trainable_pattern(self.config())
        )
        target = {"params": sharded_shapes(mesh, trained)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        restore = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                return checkpointer.restore(path.absolute(), args=restore)["params"]
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise checkpoint_error(path, error) from error
