"""Deep ensembles: several reward models that score the same records.

Source: Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles"; of
reward models: Coste et al. 2023 (arXiv 2310.02743).
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.data.records.formats import Item
from rmjax.data.schema import Tree
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation.pipeline import RewardPipeline, load_pipeline
from rmjax.evaluation.rewards import Rewards
from rmjax.evaluation.scoring import Scorer
from rmjax.models import members, paths, start_head
from rmjax.models.architecture import HeadConfig

_ONE = HeadConfig()


@dataclasses.dataclass(frozen=True)
class EnsemblePipeline(RewardPipeline):
    """The first model of an ensemble, with the `others`; its rewards are the combination of all models' rewards.

    Records are read by the first model's data options; each model has its own tokenizer and chat template. All models
    are in memory, and run one after another.
    """

    others: tuple[RewardPipeline, ...] = ()
    combined: HeadConfig = _ONE  # its combination and beta are those of the ensemble

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The scorers of all models."""
        return (self.scorer, *(other.scorer for other in self.others))

    @property
    def uncertain(self) -> bool:
        """True: models differ."""
        return True

    def score_trees(self, trees: Sequence[Tree]) -> list[np.ndarray]:
        """Returns the combined rewards of trees that all models' tokenizers would make; see `check_one_tokenizer`."""
        found = [scorer.score(trees) for scorer in self.scorers]
        return [self._combine(of_tree) for of_tree in zip(*found, strict=True)]

    def check_one_tokenizer(self) -> None:
        """Raises InputError if a model tokenizes other than the first one, or has another maximum length."""
        for other in self.others:
            if other.tokenizer.fingerprint != self.tokenizer.fingerprint:
                raise InputError(
                    "the models of an ensemble that is served must share tokens, and the tokenizer, chat template, "
                    f"template date or readout of {other.tokenizer.name} is not that of {self.tokenizer.name}: use "
                    "models of one base model, or score offline (rmjax.score), where each model has its own"
                )
            if other.max_length != self.max_length:
                raise InputError(
                    f"the models of an ensemble that is served must take equally long conversations; found max_length "
                    f"{self.max_length} and {other.max_length}: set max_length to the smaller one"
                )

    def rewards(
        self,
        items: Sequence[Item],
        report: TemplateReport | None = None,
        lengths: list[np.ndarray | None] | None = None,
    ) -> list[np.ndarray | str]:
        """Returns the combined rewards, see `RewardPipeline`, as `Rewards` with the models' standard deviation.

        An item that one model cannot score has that model's error.
        """
        found = [super().rewards(items, report, lengths), *(other.rewards(items) for other in self.others)]
        first_error = lambda of_item: next((one for one in of_item if isinstance(one, str)), "")
        return [first_error(of_item) or self._combine(of_item) for of_item in zip(*found, strict=True)]

    def _combine(self, of_models: Sequence[np.ndarray]) -> Rewards:
        stacked = np.stack([np.asarray(found) for found in of_models], axis=-2)  # [R, K, A]
        rewards = members.combine(stacked, self.combined).astype(np.float32).view(Rewards)
        rewards.reward_std = members.spread(stacked)
        return rewards


def member_paths(path: str) -> list[str]:
    """Returns the models that a path names: `A,B,C`, or a JSON file {"models": [A, B, C]} with paths relative to it.

    A single path of a model is returned as it is.

    Raises:
      InputError: the JSON file does not list models.
    """
    file = pathlib.Path(path).expanduser()
    if file.suffix == ".json" and file.is_file():
        listed = read_json(file).get("models")
        if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
            raise InputError(f'{file}: models is {json.dumps(listed)}; expected {{"models": ["PATH", …]}}')
        return [str(file.parent / one) if (file.parent / one).exists() else one for one in listed]
    return [one for one in path.split(",") if one] if "," in path and not file.exists() else [path]


def read_attributes(path: str) -> tuple[str, ...]:
    """Returns the names of the rewards of a model, or of an ensemble's first, from its small files.

    Raises:
      InputError: there is no usable model.
    """
    first = member_paths(path)[0]
    if (head := start_head.find(first, verify=True)) is None:
        raise InputError(f"{paths.resolve_path(first)}: there is no reward head; give a reward model")
    return head.attributes


def load_models(path: str, **options: Any) -> RewardPipeline:
    """Returns the pipeline of a model, or of an ensemble if the path names several; options as for `load_pipeline`.

    Raises:
      InputError: a model cannot be used, or the models have different rewards.
    """
    names = member_paths(path)
    if len(names) == 1:
        return load_pipeline(names[0], **options)
    combination = options.pop("combination", "") or "mean"
    beta = options.pop("beta", None)
    beta = 1.0 if beta is None else float(beta)
    members.check_combination(combination, beta)
    first, *others = [load_pipeline(one, **options) for one in names]
    for one, other in zip(names[1:], others, strict=True):
        if other.attributes != first.attributes:
            rewards = [", ".join(pipeline.attributes) for pipeline in (first, other)]
            raise InputError(f"{names[0]} and {one}: the rewards are {rewards[0]} and {rewards[1]}; expected the same")
    head = dataclasses.replace(first.scorer.model.head, members=len(names), combination=combination, beta=beta)
    fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(RewardPipeline)}
    common = {
        name: value
        for name, value in first.metadata.items()
        if name == "data_options" or all(other.metadata.get(name) == value for other in others)
    }
    fields["metadata"] = common | {"ensemble": {"models": names, "combination": combination, "beta": beta}}
    return EnsemblePipeline(**fields, others=tuple(others), combined=head)
