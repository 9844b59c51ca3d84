"""Hyperparameters of the decoder and of the reward head."""

import dataclasses
from typing import Any

from rmjax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of the rotary frequencies (`rope_type` "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Hyperparameters of a decoder-only transformer; axis letters as in `rmjax.models.layers`."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # H
    head_dim: int  # P
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    attention_bias: bool
    mlp_bias: bool
    max_positions: int  # maximum length of a conversation, in tokens
    initializer_range: float  # standard deviation of randomly initialized matrices

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads is {self.num_heads}; expected a multiple of num_kv_heads, {self.num_kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim is {self.head_dim}; rotary position embeddings need an even number")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The reward head: a float32 linear map without bias from the final norm's output to one value per attribute."""

    attributes: tuple[str, ...] = ("reward",)  # names of the A attributes
    init: float = 0.0  # standard deviation of a randomly initialized head
    # The linear map's output is multiplied by `scale` and shifted by `shift`, for standardized targets or rewards.
    scale: tuple[float, ...] = ()  # one per attribute; (): 1 each
    shift: tuple[float, ...] = ()  # one per attribute; (): 0 each
    merge: tuple[float, ...] = ()  # weights of the attributes in the single ranking reward; (): their mean

    def to_json(self) -> dict[str, Any]:
        """Returns the head's values for rmjax.json and head.json; `from_json` reads them."""
        return {name: list(getattr(self, name)) for name in ("attributes", "scale", "shift", "merge")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "HeadConfig":
        """Returns the head of the values that `to_json` returned."""
        scale, shift, merge = (tuple(values.get(name) or ()) for name in ("scale", "shift", "merge"))
        return cls(tuple(values["attributes"]), scale=scale, shift=shift, merge=merge)
