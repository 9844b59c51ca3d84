"""Deep ensembles: several reward models that score the same records.

Source: Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles"; of
reward models: Coste et al. 2023 (arXiv 2310.02743).
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.data.records.formats import Item
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation.pipeline import RewardPipeline, load_pipeline
from rmjax.evaluation.rewards import Rewards
from rmjax.models import members
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
        return [self._combine(of_item) for of_item in zip(*found, strict=True)]

    def _combine(self, of_models: Sequence[np.ndarray | str]) -> np.ndarray | str:
        if errors := [found for found in of_models if isinstance(found, str)]:
            return errors[0]
        stacked = jnp.stack([jnp.asarray(found) for found in of_models], axis=-2)  # [R, K, A]
        rewards = np.array(members.combine(stacked, self.combined)).view(Rewards)
        rewards.reward_std = np.array(members.spread(stacked))
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


def load_models(path: str, **options: Any) -> RewardPipeline:
    """Returns the pipeline of a model, or of an ensemble if the path names several; options as for `load_pipeline`.

    Raises:
      InputError: a model cannot be used, or the models have different rewards.
    """
    paths = member_paths(path)
    if len(paths) == 1:
        return load_pipeline(paths[0], **options)
    combination = options.pop("combination", "") or "mean"
    beta = options.pop("beta", None)
    beta = 1.0 if beta is None else float(beta)
    members.check_combination(combination, beta)
    first, *others = [load_pipeline(one, **options) for one in paths]
    for one, other in zip(paths[1:], others, strict=True):
        if other.attributes != first.attributes:
            names = [", ".join(pipeline.attributes) for pipeline in (first, other)]
            raise InputError(f"{paths[0]} and {one}: the rewards are {names[0]} and {names[1]}; expected the same")
    head = dataclasses.replace(first.scorer.model.head, members=len(paths), combination=combination, beta=beta)
    fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(RewardPipeline)}
    return EnsemblePipeline(**fields, others=tuple(others), combined=head)
