"""TRL's RewardConfig, with the arguments of its script (model, data, PEFT) and of transformers (November 2026)."""

import json
import pathlib
from typing import Any

import yaml

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.migration.command_lines import read_text
from rmjax.migration.keys import Migration, expand, parse_value
from rmjax.migration.openrlhf import lora_targets

PROGRAMS = ("trl reward", "reward_modeling.py", "reward.py", "reward")
_TORCH = "an option of PyTorch or of its launchers"
_HUB = "upload the exported artifact: rmjax.export --push_to_hub=NAME"
KEYS = expand(
    {
        # RewardConfig
        "model_init_kwargs": ("any", None),
        "trust_remote_code": ("bool", False, "", "code of models is never run"),
        "chat_template_path": ("str", None),
        "disable_dropout": ("bool", True, "", "there is no dropout"),
        "dataset_num_proc": ("int", None, "", "the number of tokenizing processes is chosen"),
        "eos_token": ("str", None, "", "that of the tokenizer is appended to strings, as in TRL"),
        "max_length": ("int", 1024, "data.max_length"),
        "pad_to_multiple_of pad_token": ("any", None, "", "rows are packed"),
        "center_rewards_coefficient": ("float", None, "objective.centering"),
        "activation_offloading": ("bool", False, "", "nothing is offloaded: model.remat recomputes"),
        "learning_rate": ("float", 1e-4, "optimizer.learning_rate"),
        "logging_steps": ("float", 10),
        "gradient_checkpointing": ("bool", True),
        "gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs": (
            "any", None, "", "model.remat has no such option",
        ),
        "bf16": ("bool", None),
        "fp16": ("bool", False),
        "lr_scheduler_kwargs": ("any", None),
        "use_liger_kernel liger_kernel_config torch_empty_cache_steps": ("any", None, "", _TORCH),
        # arguments of the script
        "model_name_or_path": ("str", None),
        "model_revision": ("str", "main", "", "download that revision, and give its directory"),
        "dtype": ("str", "float32", "", "parameters are stored in float32; bf16 chooses the activations' dtype"),
        "attn_implementation": ("str", None, "", "model.attention = auto chooses the kernel"),
        "use_peft": ("bool", False),
        "lora_r": ("int", 16),
        "lora_alpha": ("float", 32),
        "lora_dropout": ("float", 0.05, "", "adapters have no dropout"),
        "lora_target_modules": ("list", None),
        "lora_target_parameters lora_modules_to_save lora_task_type": ("any", None, "", "the head is always trained"),
        "use_rslora": ("bool", False),
        "use_dora": ("bool", False),
        "load_in_8bit load_in_4bit": ("bool", False),
        "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage": ("any", None, "", "no 4-bit weights"),
        "dataset_name": ("str", None),
        "dataset_config": ("str", None, "", "name the files of the configuration as data.train"),
        "dataset_train_split": ("str", "train"),
        "dataset_test_split": ("str", "test"),
        "dataset_streaming": ("bool", False, "", "data are tokenized once, and cached"),
        "ignore_bias_buffers": ("bool", False, "", _TORCH),
        # transformers' TrainingArguments
        "per_device_train_batch_size": ("int", 8),
        "gradient_accumulation_steps": ("int", 1),
        "num_train_epochs": ("float", 3.0, "train.epochs"),
        "max_steps": ("int", -1),
        "lr_scheduler_type": ("str", "linear"),
        "warmup_steps": ("float", 0),
        "warmup_ratio": ("float", 0.0),
        "optim": ("str", "adamw_torch_fused"),
        "optim_args optim_target_modules": ("any", None, "", "the optimizers have no such option"),
        "weight_decay": ("float", 0.0, "optimizer.weight_decay"),
        "adam_beta1": ("float", 0.9, "optimizer.b1"),
        "adam_beta2": ("float", 0.999, "optimizer.b2"),
        "adam_epsilon": ("float", 1e-8, "optimizer.eps"),
        "max_grad_norm": ("float", 1.0, "optimizer.grad_clip"),
        "label_smoothing_factor": ("float", 0.0, "", "not read there; see objective.label_smoothing"),
        "seed": ("int", 42, "train.seed"),
        "data_seed": ("int", None, "", "train.seed is also that of the order"),
        "eval_strategy save_strategy": ("str", "no"),
        "eval_steps save_steps": ("float", None),
        "per_device_eval_batch_size": ("int", 8, "", "evaluation.batch_size changes no result"),
        "save_total_limit": ("int", None),
        "load_best_model_at_end": ("bool", False, "", "the best checkpoint is kept, and exported"),
        "metric_for_best_model": ("str", None),
        "greater_is_better": ("bool", None, "", "follows from the metric"),
        "report_to": ("list", []),
        "run_name": ("str", None, "name"),
        "output_dir": ("str", None, "", "give --workdir"),
        "train_sampling_strategy": ("str", "random"),
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision": (
            "any", None, "", _HUB,
        ),
        "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint overwrite_output_dir "
        "save_only_model save_on_each_node enable_jit_checkpoint": (
            "any", None, "", "a run resumes, exactly, if its --workdir has a checkpoint",
        ),
        "dataloader_drop_last": ("bool", False, "", "each step has train.batch_size comparisons; none is dropped"),
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order length_column_name group_by_length "
        "remove_unused_columns label_names accelerator_config parallelism_config": (
            "any", None, "", "data are tokenized once, cached and packed",
        ),
        "tf32 torch_compile torch_compile_backend torch_compile_mode ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout local_rank use_cpu full_determinism "
        "bf16_full_eval fp16_full_eval use_cache auto_find_batch_size": ("any", None, "", _TORCH),
        "fsdp fsdp_config deepspeed": ("any", None, "", "parameters are sharded by mesh.fsdp"),
        "average_tokens_across_devices": ("bool", True, "", "losses are means over comparisons, whatever the devices"),
        "neftune_noise_alpha": ("float", None, "", "no noise is added to embeddings"),
        "logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen "
        "log_level log_level_replica disable_tqdm logging_dir project trackio_space_id trackio_bucket_id "
        "trackio_static_space_id debug skip_memory_metrics": ("any", None, "", "metrics are in metrics.jsonl"),
        "eval_delay prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object "
        "eval_accumulation_steps include_for_metrics batch_eval_metrics do_train do_eval do_predict": (
            "any", None, "", "there is a validation at the start, every evaluation.every steps and at the end",
        ),
    }
)  # fmt: skip
_ADAM = ("adamw_torch_fused", "adamw_torch", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla")
_OPTIMIZERS = dict.fromkeys(_ADAM, "adamw") | {"adafactor": "adafactor", "lion_32bit": "lion"}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
              "cosine_with_min_lr": "cosine"}  # fmt: skip
_METRICS = ("loss", "accuracy", "margin")


def read_file(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the arguments in a JSON or YAML file; None if it is neither, such as a shell script.

    Raises:
      InputError: it is not text, or a JSON file is damaged.
    """
    text = read_text(path)
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    except yaml.YAMLError as error:
        if path.suffix in (".yaml", ".yml"):
            raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
        return None
    return values if isinstance(values, dict) else None


def convert(migration: Migration) -> None:
    """Takes the keys over whose counterparts depend on several keys or on the value."""
    migration.take("model_name_or_path", model__path=migration["model_name_or_path"] or configs.REQUIRED)
    migration.take("chat_template_path", data__tokenizer=migration["chat_template_path"] or "")
    if kwargs := migration["model_init_kwargs"]:
        migration.leave("model_init_kwargs", f"options of from_pretrained, {kwargs}; see the keys of model.*")
    dtype = "float32" if migration["bf16"] is False and not migration["fp16"] else "bfloat16"
    migration.take("fp16" if migration["fp16"] else "bf16", model__dtype=dtype)
    migration.leave("fp16", "there is no float16; bfloat16 needs no loss scaling")
    migration.leave("bf16", "fp16 is set")
    migration.take("gradient_checkpointing", model__remat="layer" if migration["gradient_checkpointing"] else "small")
    rows, accumulation = migration["per_device_train_batch_size"], migration["gradient_accumulation_steps"]
    batch = rows * accumulation
    migration.take("per_device_train_batch_size", train__batch_size=batch, train__rows_per_device=rows)
    migration.take("gradient_accumulation_steps", train__batch_size=batch)
    migration.take("max_steps", train__steps=max(migration["max_steps"], 0))
    if migration["max_steps"] > 0:  # which overrides epochs there
        migration.leave("num_train_epochs", "max_steps is set")
    migration.take("logging_steps", train__log_every=max(int(migration["logging_steps"]), 1))
    _data(migration)
    _schedule(migration)
    _peft(migration)
    _checkpoints(migration)
    loggers = ("wandb",) if {"wandb", "all"} & set(migration["report_to"] or ()) else ()
    migration.take("report_to", train__loggers=loggers)
    sampling = {"random": True, "group_by_length": True, "sequential": False}
    migration.take("train_sampling_strategy", data__shuffle=migration.choose("train_sampling_strategy", sampling))
    migration.differences += [
        "TRL's batch is per_device_train_batch_size times gradient_accumulation_steps times the number of devices; "
        "train.batch_size is that of one device: multiply it by the number that TRL ran on.",
        "TRL leaves out pairs with a side longer than max_length (its help says that it truncates); so does rmjax, "
        "which counts them.",
    ]


def _data(migration: Migration) -> None:
    name = migration["dataset_name"]
    for split, key in (("train", "dataset_train_split"), ("validation", "dataset_test_split")):
        sources = (f"{name}:{migration[key]}",) if name else (configs.REQUIRED,)
        migration.take(key, **{f"data__{split}": sources})
    migration.leave("dataset_name", "part of data.train and data.validation")


def _schedule(migration: Migration) -> None:
    migration.take("optim", optimizer__name=migration.choose("optim", _OPTIMIZERS))
    schedule = migration.choose("lr_scheduler_type", _SCHEDULES)
    migration.take("lr_scheduler_type", optimizer__schedule=schedule)
    options = migration["lr_scheduler_kwargs"] or {}
    try:
        options = json.loads(options) if isinstance(options, str) else options
        options = {key: parse_value("float", value) for key, value in options.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{migration.where}: lr_scheduler_kwargs is {options!r}; expected an object of numbers"
        ) from error
    if set(options) - {"min_lr", "min_lr_rate"}:
        raise InputError(f"{migration.where}: lr_scheduler_kwargs is {options}; rmjax has min_lr and min_lr_rate")
    if options:
        fraction = options.get("min_lr_rate", options.get("min_lr", 0.0) / migration["learning_rate"])
        migration.take("lr_scheduler_kwargs", optimizer__final_fraction=fraction)
    warmup, ratio, steps = (migration[name] for name in ("warmup_steps", "warmup_ratio", "max_steps"))
    share = warmup if 0 < warmup < 1 else ratio
    name = "warmup_steps" if warmup or not ratio else "warmup_ratio"
    if warmup >= 1 or not share:
        migration.take(name, optimizer__warmup_steps=int(warmup))
    elif steps > 0:
        migration.take(name, optimizer__warmup_steps=-int(-share * steps // 1))
    migration.leave(name, f"a share: set optimizer.warmup_steps to {share} times the steps that rmjax prints")
    migration.leave("warmup_ratio", "warmup_steps is set")


def _peft(migration: Migration) -> None:
    for name in ("load_in_8bit", "load_in_4bit"):
        if migration[name]:
            raise InputError(
                f"{migration.where}: {name}: rmjax does not load bitsandbytes' weights; remove it, and use "
                "model.frozen_dtype = int8 with adapters"
            )
        migration.leave(name, "the base model may be int8: model.frozen_dtype")
    names = ("lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "use_dora")
    if not migration["use_peft"]:
        for name in ("use_peft", *names, "lora_dropout"):
            migration.leave(name, "use_peft is false: all parameters are trained")
        return
    targets = migration["lora_target_modules"]
    everything = targets in (None, ["all-linear"])
    if targets is None:
        migration.differences.append(
            "PEFT's default adapters are those of the query and the value of attention; set lora.targets = "
            "attention/query|attention/value to have no others."
        )
    migration.take("use_peft", train__trainable="lora")
    migration.take("lora_r", lora__rank=migration["lora_r"])
    migration.take("lora_alpha", lora__alpha=migration["lora_alpha"])
    migration.take("lora_target_modules", lora__targets="" if everything else lora_targets(migration, targets))
    migration.take("use_rslora", lora__rslora=migration["use_rslora"])
    migration.take("use_dora", lora__dora=migration["use_dora"])


def _checkpoints(migration: Migration) -> None:
    for name, steps, key in (
        ("eval_strategy", "eval_steps", "evaluation__every"),
        ("save_strategy", "save_steps", "checkpoint__every"),
    ):
        value = migration[steps]
        if value is not None and value >= 1 and migration[name] in ("steps", "no"):
            migration.take(steps, **{key: int(value)})
        migration.leave(steps, "a share of the run, or not read: ten validations a run, a checkpoint at each")
        migration.leave(name, "there is a validation, and a checkpoint, every evaluation.every steps")
    if migration["save_total_limit"]:
        migration.take("save_total_limit", checkpoint__keep=migration["save_total_limit"])
    if (metric := (migration["metric_for_best_model"] or "").removeprefix("eval_")) in _METRICS:
        migration.take("metric_for_best_model", checkpoint__best=metric)
    migration.leave("metric_for_best_model", "not a validation metric of rmjax; see docs/glossary.md")
