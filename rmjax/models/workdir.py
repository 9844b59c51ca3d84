"""The workdir of a training run: its files, its best checkpoint and the metadata of the model in it."""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rmjax.core import config as configs
from rmjax.core import readouts, state_files
from rmjax.core.errors import InputError, checkpoint_error
from rmjax.models import checkpoint_files, partition
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
        self.data_file = path / "data.json"  # the hashes of the training and the validation data
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

    def create(self, config: configs.Config, model: RewardModel, data_hashes: Mapping[str, str]) -> None:
        """Writes everything that evaluation, export and serving need, except the tokenizer and the checkpoints.

        Args:
          data_hashes: {split: hash of its data}.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        decoder = FAMILIES[model.family].write_config(model.decoder)
        self.model_file.write_text(json.dumps(decoder, indent=2) + "\n")
        self.data_file.write_text(json.dumps(dict(data_hashes)) + "\n")
        self.head_file.write_text(json.dumps(model.head.to_json(), indent=2) + "\n")
        sums = {file.name: state_files.file_sum(file) for file in (self.model_file, self.data_file, self.head_file)}
        folder = self.tokenizer_directory
        sums |= {f"{folder.name}/{name}": value for name, value in state_files.file_sums(folder).items()}
        state_files.write_sums(self.path, sums | {self.config_file.name: state_files.text_sum(configs.to_text(config))})
        configs.save(config, self.config_file)

    def checked(self, path: pathlib.Path) -> pathlib.Path:
        """Returns the path of a file or directory that `create` wrote, after verifying its checksum.

        Raises:
          InputError: it has changed.
        """
        name = "" if path == self.path else path.relative_to(self.path).as_posix()
        state_files.check_files(self.path, name)
        return path

    def config(self) -> configs.Config:
        """Returns the run's configuration."""
        return configs.load(self.checked(self.config_file))

    def head(self) -> HeadConfig:
        """Returns the reward head's configuration."""
        return HeadConfig.from_json(state_files.read_object(self.checked(self.head_file), {"attributes": list}))

    def data_options(self) -> tuple[dict[str, Any], int]:
        """Returns the model's data options, and the maximum length of a conversation in tokens."""
        data = self.config().data
        return {name: data[name] for name in DATA_OPTIONS}, data.max_length

    def data_hashes(self) -> dict[str, str]:
        """Returns {split: hash of its data}; {} before `create`. Old workdirs have that of the training data alone."""
        return state_files.read_object(self.checked(self.data_file), {"train": str}) if self.created else {}

    def validation_metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics stored with a checkpoint; None if it was saved between validations."""
        path = self.checkpoint_directory / str(step) / checkpoint_files.METRICS
        return state_files.read_object(path) if path.exists() else None

    def best_step(self) -> int:
        """Returns the step of the best checkpoint by `config.checkpoint.best`, or of the latest if none has metrics.

        Raises:
          InputError: there is no checkpoint.
        """
        return self._rank_steps()[0][0]

    def _rank_steps(self) -> tuple[list[int], list[str]]:
        """Returns the steps of the checkpoints, best first, and the faults of those with damaged metrics."""
        best, directory = self.config().checkpoint.best, self.checkpoint_directory
        scores, faults = {}, []
        for step in checkpoint_files.steps(directory):
            if fault := checkpoint_files.find_damage(directory, step, metrics_only=True):
                faults.append(fault)
                continue
            metrics = self.validation_metrics(step)
            score = -math.inf if metrics is None else configs.selection_score(metrics, best)
            # Of checkpoints with equal scores the first is the best; of those without a finite one, the last.
            scores[step] = (score, -step if score > -math.inf else step)
        if not scores:
            if faults:
                raise InputError(f"{self}: none of its checkpoints is intact: {'; '.join(faults)}")
            raise InputError(f"{self}: no checkpoint has been saved yet; continue the training run")
        return sorted(scores, key=scores.__getitem__, reverse=True), faults

    @functools.cached_property
    def intact_step(self) -> int:
        """The step of the best checkpoint whose files are intact; a warning names the damaged ones that are better.

        All processes must read it; each verifies a part of the files.

        Raises:
          InputError: there is no intact checkpoint.
        """
        steps, faults = self._rank_steps()
        required = (self.path / state_files.SUMS_FILE).exists()
        for step in steps:
            if fault := checkpoint_files.find_damage(self.checkpoint_directory, step, required=required):
                faults.append(fault)
                continue
            for fault in faults if jax.process_index() == 0 else ():
                state_files.warn(f"{fault}: this checkpoint is damaged; the one at step {step} is used instead")
            return step
        raise InputError(f"{self}: none of its checkpoints is intact: {'; '.join(faults)}")

    def metadata(self) -> dict[str, Any]:
        """Returns the metadata of the best checkpoint for rmjax.json: head, source, metrics, data options."""
        config, step = self.config(), self.intact_step
        metrics = self.validation_metrics(step) or {}
        data_options, max_length = self.data_options()
        return self.head().to_json() | {
            "source": config.model.path or "random initialization",
            "source_step": step,
            "validation": metrics,
            "validation_data": list(config.data.validation),
            # Of the rewards on the validation data; stored, not applied.
            "reward_mean": metrics.get("reward_mean"),
            "reward_std": metrics.get("reward_std"),
            "max_length": max_length,
            "pooling": config.data.readout or readouts.LAST_TOKEN,
            "data_options": data_options,
            "template_date": config.data.template_date or None,
            "dtype": config.model.dtype,
        }

    def save_frozen(self, path: str, checksum: str) -> None:
        """Writes where the frozen parameters of the run are, and their `partition.checksum`.

        Args:
          path: `model.path` of the run; empty if they are those of the random initialization.
        """
        local = pathlib.Path(path).expanduser()
        path = str(local.absolute()) if path and local.is_dir() else path
        if jax.process_index() == 0:
            state_files.write_sealed(self.frozen_file, {"path": path, "checksum": checksum})

    def frozen_path(self) -> str:
        """Returns the path or hub name of the model that has the frozen parameters."""
        return self._frozen()["path"]

    def _frozen(self) -> dict[str, Any]:
        return state_files.read_sealed(self.frozen_file, {"path": str, "checksum": str})

    def check_frozen(self, checksum: str) -> None:
        """Raises InputError if the frozen parameters of the run have another `partition.checksum`."""
        saved = self._frozen()
        if checksum != saved["checksum"]:
            raise InputError(
                f"{self}: the parameters that were not trained are those of {saved['path'] or 'the initialization'}, "
                "which have changed since the run began (the checksum differs); restore them"
            )

    def restore_params(self, model: RewardModel, mesh: Mesh) -> Params:
        """Returns the trained parameters of the best checkpoint, without the optimizer's state.

        Raises:
          InputError: there is no checkpoint, or it is damaged.
        """
        path = self.checkpoint_directory / str(self.intact_step) / "state"
        trained, _ = partition.split(model.shapes(), partition.trainable_pattern(self.config()))
        target = {"params": sharded_shapes(mesh, trained)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        restore = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                return checkpointer.restore(path.absolute(), args=restore)["params"]
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise checkpoint_error(path, error) from error
