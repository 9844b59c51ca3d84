"""Calibration of a trained model, written as an artifact."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmjax.api.data import Data, to_sources
from rmjax.core.errors import InputError
from rmjax.evaluation import calibrating
from rmjax.evaluation import laplace as laplaces
from rmjax.evaluation.evaluate import read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import correction
from rmjax.models.loading import LoadedModel
from rmjax.training.export import export


def calibrate(
    model: str | pathlib.Path,
    data: Data,
    output: str | pathlib.Path,
    *,
    length: bool = False,
    isotonic: bool = False,
    laplace: bool = False,
    format: str = "auto",
    limit: int = 0,
) -> dict[str, Any]:
    """Writes the artifact of a model that is calibrated on labelled data, which should be held out from training.

    Args:
      length: subtract the LOWESS curve of rewards on the tokens of conversations.
      isotonic: map rewards to labels by an ascending curve.
      laplace: store the Laplace approximation of the linear head, which gives rewards a standard deviation.
      format, limit: of the data, as in `rmjax.evaluate`.

    Returns:
      `temperature`, `mean`, `std`; `metrics`, those `before` and `after`, cross-validated.

    Raises:
      InputError: the model has several rewards, or a part does not fit the model or the data.
    """
    pipeline = load_pipeline(str(model), option=None).with_data_options(format, (), None)
    items = read_evaluation_data(to_sources(data), pipeline.options, limit=limit)
    scored = calibrating.score(pipeline, items)
    found = calibrating.fit(scored, length=length, isotonic=isotonic)
    metrics = calibrating.cross_validate(scored, length=length, isotonic=isotonic)
    head = pipeline.scorer.model.head
    posterior = _posterior(pipeline, items) if laplace else None

    def change(loaded: LoadedModel) -> LoadedModel:
        scale, shift = (head.scale or (1.0,))[0], (head.shift or (0.0,))[0]
        changed = dataclasses.replace(
            head,
            scale=(scale / found.temperature,),
            shift=(shift / found.temperature - found.mean,),
            laplace=head.laplace or posterior is not None,
        )
        params = loaded.params
        if posterior is not None:  # of the weights times `scale`
            parts = {"factor": posterior.factor / scale, "offset": posterior.center @ posterior.factor / scale}
            parts = {name: jnp.asarray(part, jnp.float32) for name, part in parts.items()}
            params = params | {"head": params["head"] | {"laplace": parts}}
        curves = found.correction.to_json()
        stored = {
            "calibration": {"temperature": found.temperature, "mean": found.mean, **metrics},
            "reward_mean": 0.0,
            "reward_std": found.std,
        } | ({correction.KEY: curves} if curves else {})
        new = dataclasses.replace(loaded.model, head=changed)
        return dataclasses.replace(loaded, model=new, params=params, metadata=loaded.metadata | stored)

    export(str(model), pathlib.Path(output), change=change)
    return {"temperature": found.temperature, "mean": found.mean, "std": found.std, "metrics": metrics}


def _posterior(pipeline: Any, items: Any) -> laplaces.Posterior:
    """Returns the Laplace approximation of the head of a pipeline."""
    head, params = pipeline.scorer.model.head, pipeline.scorer.params["head"]
    if head.members > 1 or head.hidden:
        what = f"{head.members} members" if head.members > 1 else "a hidden layer"
        raise InputError(f"--laplace: the reward head has {what}; expected one linear layer: remove --laplace")
    weights = np.asarray(params["kernel"], np.float64)[:, 0] * (head.scale or (1.0,))[0]
    return laplaces.fit(*laplaces.read_features(pipeline, items), weights)
