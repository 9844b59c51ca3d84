"""InternLM 2: Llama with its own tensor names, and queries, keys and values in one matrix."""

from rmjax.models.families.family import Family, TensorName
from rmjax.models.families.tables import DEFAULTS, KEYS, make_tensors

_ATTENTION = dict.fromkeys(("attention/query", "attention/key", "attention/value"), "attention.wqkv")
_MLP = {"mlp/gate": "feed_forward.w1", "mlp/up": "feed_forward.w3", "mlp/down": "feed_forward.w2"}
_NORMS = {"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"}


def _rename(row: TensorName) -> TensorName:
    name = row.name.replace("embed_tokens", "tok_embeddings")
    return row._replace(name=name, by_head="wqkv" in name)


INTERNLM2 = Family(
    model_type="internlm2",
    classifier=None,
    keys=KEYS | {"bias": "attention_bias"},
    defaults=DEFAULTS | {"bias": True},
    fields={"mlp_bias": False},
    tensors=tuple(
        _rename(row) for row in make_tensors(_ATTENTION | {"attention/output": "attention.wo"} | _MLP, _NORMS)
    ),
    unused_tensors=r"output\.weight|.*rotary_emb\.inv_freq",
)
