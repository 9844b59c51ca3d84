"""A model family: Llama with norms of queries and keys, whose files name the model "my_llama"."""

from rmjax.models.families.family import Family
from rmjax.models.families.tables import DEFAULTS, KEYS, LINEAR, NO_BIAS, PRE_NORMS, QK_NORMS, make_tensors

FAMILY = Family(
    model_type="my_llama",
    classifier=None,  # transformers has no such class
    keys=KEYS,  # {key of config.json: field of DecoderConfig}
    defaults=DEFAULTS,
    fields=NO_BIAS | {"qk_norm": "head"},  # of DecoderConfig
    tensors=make_tensors(LINEAR, PRE_NORMS | QK_NORMS),
)
