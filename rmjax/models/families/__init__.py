"""Model families: one module per family, or per series of families; each is registered in `FAMILIES`."""

import pathlib

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.arcee import ARCEE
from rmjax.models.families.cohere import COHERE, COHERE2
from rmjax.models.families.exaone4 import EXAONE4
from rmjax.models.families.family import Family, TensorName
from rmjax.models.families.gemma import GEMMA
from rmjax.models.families.gemma2 import GEMMA2
from rmjax.models.families.gemma3 import GEMMA3_TEXT
from rmjax.models.families.glm import GLM, GLM4
from rmjax.models.families.gpt import GPT2, GPT_NEOX, GPTJ, OPT
from rmjax.models.families.granite import GRANITE
from rmjax.models.families.internlm2 import INTERNLM2
from rmjax.models.families.keys import REFUSED_EVERYWHERE
from rmjax.models.families.layer_norms import NEMOTRON, PHI, STABLELM, STARCODER2
from rmjax.models.families.llama import LLAMA
from rmjax.models.families.mistral import MINISTRAL, MISTRAL
from rmjax.models.families.mixtures import MIXTRAL, QWEN2_MOE, QWEN3_MOE
from rmjax.models.families.olmo import OLMO2, OLMO3
from rmjax.models.families.phi3 import PHI3
from rmjax.models.families.qwen import QWEN2, QWEN3
from rmjax.models.families.refused import reason
from rmjax.models.families.seed_oss import SEED_OSS
from rmjax.models.families.smollm3 import SMOLLM3
from rmjax.models.families.user import user_families

__all__ = ["FAMILIES", "Family", "TensorName", "read_config"]

_LLAMAS = (LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3, PHI3, SMOLLM3, GRANITE, SEED_OSS, ARCEE)
_MIXTURES = (QWEN2_MOE, QWEN3_MOE, MIXTRAL)
_OTHERS = (INTERNLM2, GEMMA, GEMMA2, GEMMA3_TEXT, OLMO2, OLMO3, GLM, GLM4, EXAONE4)
_LAYER_NORMS = (GPT2, GPT_NEOX, GPTJ, OPT, COHERE, COHERE2, NEMOTRON, PHI, STABLELM, STARCODER2)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*_LLAMAS, *_MIXTURES, *_OTHERS, *_LAYER_NORMS)}

_REMOTE = ": its model is Python code beside the weights (auto_map), which rmjax never runs"


def read_config(path: pathlib.Path) -> tuple[str, DecoderConfig]:
    """Returns the model family (`model_type`) and the hyperparameters in a Hugging Face config.json.

    Raises:
      InputError: the file cannot be read, or there is no such family; see also `Family.read_config`.
    """
    values = read_json(path)
    name = str(values.get("model_type"))
    name = next((family.model_type for family in FAMILIES.values() if name in family.aliases), name)
    for family in FAMILIES.values():
        if name == family.nested_in:  # a model with images, whose text part has its own settings
            outer = {key: value for key, value in values.items() if key in REFUSED_EVERYWHERE}
            return family.model_type, family.read_config((values.get("text_config") or {}) | outer, path)
    if name not in FAMILIES:
        FAMILIES.update(user_families())
    if (known := FAMILIES.get(name)) is None:
        names = ", ".join(sorted(FAMILIES))
        remote = "" if reason(name) or not values.get("auto_map") else _REMOTE
        raise InputError(
            f"{path}: model_type is {values.get('model_type')!r}{reason(name)}{remote}; supported model families: "
            f"{names}",
            page="docs/models.md#families",
        )
    return name, known.read_config(values, path)
