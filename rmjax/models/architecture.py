"""What a decoder is made of, and how Hugging Face's config.json says it."""

import dataclasses
from typing import Any

from rmjax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies (`rope_type` "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The constants of a decoder-only transformer. Letters as in `rmjax.models.layers`."""

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
    max_positions: int  # longest conversation the model was made for
    initializer_range: float  # standard deviation of a random initialisation

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"{self.num_heads} query heads are not a multiple of {self.num_kv_heads} key/value heads")
        if self.head_dim % 2:
            raise InputError(f"head dimension {self.head_dim} is odd; rotary embeddings turn pairs")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The reward head: one float32 linear map from the final norm's output, per attribute, without bias."""

    attributes: tuple[str, ...] = ("reward",)  # A names
    init: float = 0.0  # standard deviation of a fresh head
    # What the linear map gives is multiplied and shifted, an attribute each, for standardised targets or rewards.
    scale: tuple[float, ...] = ()  # (): 1 each
    shift: tuple[float, ...] = ()  # (): 0 each
    merge: tuple[float, ...] = ()  # weights that make one reward of the attributes; (): their mean

    def to_json(self) -> dict[str, Any]:
        """Returns the values that rmjax.json and a workdir store of the head; `from_json` reads them."""
        return {name: list(getattr(self, name)) for name in ("attributes", "scale", "shift", "merge")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "HeadConfig":
        """Reads the values that `to_json` returned."""
        optional = {name: tuple(values.get(name) or ()) for name in ("scale", "shift", "merge")}
        return cls(attributes=tuple(values["attributes"]), **optional)
