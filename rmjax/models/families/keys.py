"""Keys of config.json that are the same for every model family: which have no meaning here, and which are refused.

The sources are the config.json files of published models; transformers itself ignores every key that it does not know.
"""

import pathlib
import re
from typing import Any

from rmjax.core.errors import InputError
from rmjax.models import quantized

# Keys that do not affect the output of a reward model, whatever their value.
_IGNORED = {
    # the file, its classes and its tools
    "architectures", "model_type", "transformers_version", "auto_map", "transformers.js_config", "dtype", "torch_dtype",
    "_name_or_path", "name_or_path", "tokenizer_class", "torchscript", "use_bfloat16", "tf_legacy_loss", "cache_dir",
    "use_safetensors", "model_max_length", "max_sequence_length", "max_seq_len", "use_flash_attention_2",
    "_flash_attn_2_enabled", "attn_implementation", "cache_implementation", "low_cpu_mem_usage", "trust_remote_code",
    # tokens
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "end_token_id", "pad_token",
    "decoder_start_token_id", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "vision_token_id",
    # labels and rewards, which `rmjax.models.heads` reads
    "id2label", "label2id", "num_labels", "problem_type", "mean", "std", "normalize_reward", "reward_token_id",
    # training: dropout, losses, initialization, tensor parallelism
    "attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout", "hidden_dropout_prob",
    "embd_pdrop", "resid_pdrop", "attn_pdrop", "embedding_dropout", "residual_dropout", "summary_dropout_prob",
    "router_aux_loss_coef", "output_router_logits", "router_jitter_noise", "neftune_noise_alpha", "pretraining_tp",
    "use_cache", "gradient_checkpointing", "is_training", "loss_type",
    # parts that a reward model lacks: the language modeling head, a decoder beside an encoder
    "tie_word_embeddings", "final_logit_softcapping", "logits_scaling", "logit_scale", "is_decoder", "bias",
    "tie_encoder_decoder", "cross_attention_hidden_size", "num_logits_to_keep",
    # outputs and defaults of text generation, which transformers 4 wrote with all others
    "return_dict", "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate",
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty",
    "bad_words_ids", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "chunk_size_feed_forward", "finetuning_task", "prefix",
    "task_specific_params",
}  # fmt: skip
_IGNORED_NAMES = re.compile(r"unsloth_\w+|trl_\w+|vhead_\w+|_attn_implementation\w*")
# Keys that turn a feature on: ignored at these values, which turn it off.
_OFF: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (None, False),
    "use_mrope": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "use_bidirectional_attention": (None, False),
    "num_objectives": (None, 1),
    "num_quantiles": (None, 1),
    "pooling": (None, "last", "mean"),
    "clip_qkv": (None,),
    "alibi": (None, False),
}
_WINDOW = ("sliding_window", "sliding_window_size", "max_window_layers")  # ignored if there is no window
_GATING = "the rewards of several objectives are combined by a gating network (ArmoRM, QRM, URM): not implemented"
REFUSED_EVERYWHERE = ("quantization_config", "use_bidirectional_attention")  # also beside the settings of a part
_REFUSED = {  # regex of a key: why no model with it can be read, and what to do
    "quantization_config": f"the weights are quantized; {quantized.FIX}",
    "use_bidirectional_attention": "the model attends to later tokens; only causal attention is implemented",
    "num_objectives|gating_.*": _GATING,
    "num_quantiles": "the head predicts quantiles (QRM); only heads with one output per reward are implemented",
    "pooling": "expected last or mean: the reward is read at the last token, or of the mean over all tokens",
    "clip_qkv": "queries, keys and values are clipped, which is not implemented",
    "alibi": "positions are linear biases of the attention (ALiBi); only rotary embeddings are implemented",
}


def check_unknown(values: dict[str, Any], known: set[str], path: pathlib.Path, family: str) -> None:
    """Raises InputError for a key of the config.json at `path` that is neither `known` nor without a meaning."""
    unknown = {key: value for key, value in values.items() if key not in known and not _is_meaningless(key, values)}
    for key, value in sorted(unknown.items()):
        if reason := next((reason for names, reason in _REFUSED.items() if re.fullmatch(names, key)), None):
            shown = quantized.describe_config(value) if key == "quantization_config" else repr(value)
            raise InputError(f"{path}: {key} is {shown}: {reason}")
    for key, value in sorted(unknown.items()):
        raise InputError(
            f"{path}: the key {key!r} = {value!r} is not known for the model family {family!r} "
            f"({len(unknown)} unknown keys); if it does not affect the output, remove it"
        )


def _is_meaningless(key: str, values: dict[str, Any]) -> bool:
    value = values[key]
    if key in _WINDOW:
        return values.get("sliding_window") is None or values.get("use_sliding_window") is False
    if key in _OFF:
        return value in _OFF[key]
    if key == "layer_types":
        return value is None or (isinstance(value, list) and all(kind == "full_attention" for kind in value))
    return key in _IGNORED or _IGNORED_NAMES.fullmatch(key) is not None
