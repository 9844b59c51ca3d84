"""Recognition of quantized checkpoints, which are refused: by config.json, and by the names of packed tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

FIX = "give the model in bfloat16 or float32 that it was made from, or save it dequantized"
# Names of tensors beside or instead of a matrix: GPTQ and AWQ, bitsandbytes, compressed-tensors, FP8, MXFP4, HQQ.
_PACKED = re.compile(
    r".+\.(qweight|qzeros|g_idx|weight\.(absmax|quant_map|nested_absmax|quant_state\..+)|SCB|weight_packed|"
    r"weight_scale(_inv)?|input_scale|W_q)|.+_(blocks|scales)"
)


def describe_config(value: Any) -> str:
    """Returns the method of a `quantization_config` and its width, in words.

    >>> describe_config({"quant_method": "gptq", "bits": 4, "group_size": 128})
    "quant_method 'gptq', bits 4"
    """
    if not isinstance(value, Mapping):
        return f"{value!r:.80}"
    shown = [f"{key} {value[key]!r:.40}" for key in ("quant_method", "bits", "w_bit", "fmt") if key in value]
    shown += [key for key in ("load_in_4bit", "load_in_8bit") if value.get(key)]
    return ", ".join(shown) or f"{dict(value)!r:.80}"


def find_packed(names: Iterable[str]) -> str:
    """Returns the first name of a tensor of a quantized checkpoint; empty if there is none."""
    return min((name for name in names if _PACKED.fullmatch(name)), default="")
