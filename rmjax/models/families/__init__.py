"""Model families: one module per family, each registered in `FAMILIES`."""

import pathlib

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family, TensorName
from rmjax.models.families.llama import LLAMA

__all__ = ["FAMILIES", "Family", "TensorName", "read_config"]

FAMILIES = {family.model_type: family for family in (LLAMA,)}


def read_config(path: pathlib.Path) -> tuple[str, DecoderConfig]:
    """Returns the model family (`model_type`) and the hyperparameters in a Hugging Face config.json.

    Raises:
      InputError: the file cannot be read, or `FAMILIES` has no such family; see also `Family.read_config`.
    """
    values = read_json(path)
    if (family := FAMILIES.get(str(values.get("model_type")))) is None:
        known = ", ".join(FAMILIES)
        raise InputError(f"{path}: model_type is {values.get('model_type')!r}; supported model families: {known}")
    return family.model_type, family.read_config(values, path)
