"""Model families that cannot be implemented by this decoder, or are not yet, and why."""

import re

_REASONS = {
    # A tree's branches continue from the state of their prefix, which a recurrent layer would have to copy.
    r"qwen3_next|qwen3_5\w*|olmo_hybrid|lfm2\w*|kimi_linear|\w*mamba\w*|falcon_h1|jamba|zamba\d?|bamba|nemotron_h"
    r"|granitemoehybrid|rwkv|recurrent_gemma|xlstm|minimax": (
        "it has recurrent layers, whose state responses to one prompt cannot share through an attention mask"
    ),
    r"bert|roberta|xlm-roberta\w*|deberta(-v2)?|electra|albert|distilbert|modernbert|eurobert|camembert|mpnet|nomic_bert"
    r"|t5|mt5|umt5|bart|t5gemma\w*": (
        "it attends to later tokens, so that responses cannot share the computation of a prompt"
    ),
    r"deepseek_v\d|mistral4|glm4_moe_lite": (
        "its attention projects keys and values to a latent vector, which is not implemented"
    ),
    r"gpt_oss": "its attention has learnt sinks, and its experts biases and clipped gates, which are not implemented",
    r"llama4\w*": "its attention has chunks, and its router weighs the inputs of experts, which is not implemented",
    r"glm4_moe|minimax_m2|ernie4_5_moe": (
        "its router corrects the choice of experts by a learnt bias, which is not implemented"
    ),
    r"phimoe|dbrx|jetmoe|granitemoe\w*|hunyuan_v1_moe|olmoe|flex_olmo": (
        "its router, its norms or its tensors of experts are not implemented; only the mixtures of Mixtral and Qwen are"
    ),
    r"gpt_neo|bloom|falcon|mpt|olmo|persimmon|xglm|codegen": "its norms or positions are not implemented",
}


def reason(model_type: str) -> str:
    """Returns why a model family is not supported, after ": "; empty if nothing is known of it."""
    return next((f": {text}" for names, text in _REASONS.items() if re.fullmatch(names, model_type)), "")
