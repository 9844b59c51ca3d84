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
    r"mixtral|qwen2_moe|qwen3_moe|olmoe|phimoe|gpt_oss|granitemoe\w*|deepseek_v\d|glm4_moe\w*|minimax_m2|dbrx|jetmoe"
    r"|hunyuan_v1_moe|ernie4_5_moe|flex_olmo|llama4\w*": "mixtures of experts are not implemented",
    r"gpt2|gpt_neo|gpt_neox|gptj|opt|bloom|falcon|mpt|phi|stablelm|starcoder2|nemotron|cohere\d?|olmo|persimmon|xglm": (
        "its norms, positions or parallel layers are not implemented"
    ),
}


def reason(model_type: str) -> str:
    """Returns why a model family is not supported, after ": "; empty if nothing is known of it."""
    return next((f": {text}" for names, text in _REASONS.items() if re.fullmatch(names, model_type)), "")
