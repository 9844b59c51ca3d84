"""NeMo-RL's rm.yaml (keys and defaults of November 2026)."""

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.migration.keys import Migration, expand, listed

_BATCHES = "rows are packed already"
KEYS = expand(
    {
        "rm.max_num_epochs": ("float", 1, "train.epochs"),
        "rm.max_num_steps": ("int", -1),
        "rm.val_period": ("int", 16),
        "rm.val_batches": ("int", -1),
        "rm.val_global_batch_size": ("int", 32, "evaluation.batch_size"),
        "rm.val_micro_batch_size": ("int", 1, "", "train.rows_per_device bounds validation too"),
        "rm.val_at_start rm.val_at_end": ("bool", False, "", "there is a validation at the start and at the end"),
        "rm.seed": ("int", 42, "train.seed"),
        "checkpointing.enabled": ("bool", True, "", "checkpoints are always saved"),
        "checkpointing.checkpoint_dir": ("str", "results/rm", "", "give --workdir"),
        "checkpointing.metric_name": ("str", "val:validation-default_loss"),
        "checkpointing.higher_is_better": ("bool", False, "", "follows from the metric"),
        "checkpointing.keep_top_k": ("int", 3),
        "checkpointing.save_period": ("int", 16, "checkpoint.every"),
        "checkpointing.checkpoint_must_save_by": ("str", None, "", "send SIGTERM, which saves one"),
        "checkpointing.save_optimizer": ("bool", True, "", "checkpoints always hold the optimizer state"),
        "policy.model_name": ("str", None),
        "policy.tokenizer.name": ("str", None),
        "policy.tokenizer.chat_template policy.tokenizer.chat_template_kwargs": (
            "any", None, "", "the chat template is that of the tokenizer; edit it there",
        ),
        "policy.train_global_batch_size": ("int", 128, "train.batch_size"),
        "policy.train_micro_batch_size": ("int", 1, "train.rows_per_device"),
        "policy.max_total_sequence_length": ("int", 8192),
        "policy.precision": ("str", "bfloat16"),
        "policy.activation_checkpointing_enabled": ("bool", False),
        "policy.reward_model_cfg.enabled": ("bool", True),
        "policy.reward_model_cfg.reward_model_type": ("str", "bradley_terry"),
        "policy.dtensor_cfg.enabled": ("bool", True),
        "policy.dtensor_cfg._v2": ("bool", True, "", "there is one backend"),
        "policy.dtensor_cfg.cpu_offload": ("bool", False, "", "nothing is offloaded in training: shard by mesh.fsdp"),
        "policy.dtensor_cfg.sequence_parallel": ("bool", False, "", "XLA shards activations with mesh.tensor"),
        "policy.dtensor_cfg.activation_checkpointing": ("bool", False),
        "policy.dtensor_cfg.tensor_parallel_size": ("int", 1, "mesh.tensor"),
        "policy.dtensor_cfg.context_parallel_size": ("int", 1, "mesh.sequence"),
        "policy.dtensor_cfg.custom_parallel_plan": ("str", None, "", "there is one sharding rule a parameter"),
        "policy.megatron_cfg.enabled": ("bool", False, "", "there is one backend"),
        "policy.dynamic_batching.enabled policy.sequence_packing.enabled": ("bool", False, "", _BATCHES),
        "policy.dynamic_batching.train_mb_tokens policy.dynamic_batching.sequence_length_round "
        "policy.sequence_packing.train_mb_tokens policy.sequence_packing.algorithm": ("any", None, "", _BATCHES),
        "policy.make_sequence_length_divisible_by": ("int", 1, "", _BATCHES),
        "policy.max_grad_norm": ("float", 1.0),
        "policy.optimizer.name": ("str", "torch.optim.AdamW"),
        "policy.optimizer.kwargs.lr": ("float", 2e-6, "optimizer.learning_rate"),
        "policy.optimizer.kwargs.weight_decay": ("float", 0.1, "optimizer.weight_decay"),
        "policy.optimizer.kwargs.betas": ("list", [0.9, 0.98]),
        "policy.optimizer.kwargs.eps": ("float", 1e-5, "optimizer.eps"),
        "policy.optimizer.kwargs.foreach policy.optimizer.kwargs.fused": ("bool", False, "", "an option of PyTorch"),
        "policy.scheduler": ("any", None),
        "data.max_input_seq_length": ("int", None),
        "data.shuffle": ("bool", True, "data.shuffle"),
        "data.dataset_name": ("str", None),
        "data.train_data_path data.train": ("any", None),
        "data.val_data_path data.val_data_paths data.validation": ("any", None),
        "data.add_bos data.add_eos data.add_generation_prompt": (
            "bool", None, "", "messages are rendered whole by the chat template, with nothing added",
        ),
        "data.prompt_file data.system_prompt_file data.default.prompt_file data.default.system_prompt_file": (
            "str", None, "", "write the prompts into the data",
        ),
        "data.num_workers": ("int", None, "", "data are tokenized once, and cached"),
        "logger.log_dir": ("str", None, "", "metrics are in the workdir"),
        "logger.wandb_enabled": ("bool", False),
        "logger.tensorboard_enabled": ("bool", False, "", "TensorBoard's files are always written"),
        "logger.swanlab_enabled logger.mlflow_enabled": ("bool", False, "", "loggers: TensorBoard, wandb, or your own"),
        "logger.monitor_gpus logger.num_val_samples_to_print": ("any", None, "", "not reported"),
        "logger.wandb logger.tensorboard logger.swanlab logger.mlflow logger.gpu_monitoring": (
            "any", None, "", "wandb's project is the variable WANDB_PROJECT",
        ),
        "cluster.gpus_per_node cluster.num_nodes": (
            "int", 1, "", "hosts are started one by one, devices are found; see mesh.*",
        ),
    }
)  # fmt: skip
WHOLE = ("data.train", "data.validation", "policy.scheduler", "logger.wandb", "logger.tensorboard", "logger.swanlab",
         "logger.mlflow", "logger.gpu_monitoring")  # fmt: skip
_NAMES = {"HelpSteer3": "nvidia/HelpSteer3", "Tulu3Preference": "allenai/llama-3.1-tulu-3-8b-preference-mixture"}


def convert(migration: Migration) -> None:
    """Takes the keys over whose counterparts depend on several keys or on the value."""
    migration.take("policy.model_name", model__path=migration["policy.model_name"] or configs.REQUIRED)
    tokenizer = migration["policy.tokenizer.name"]
    other = tokenizer if tokenizer != migration["policy.model_name"] else None
    migration.take("policy.tokenizer.name", data__tokenizer=other or "")
    if not migration["policy.reward_model_cfg.enabled"]:
        raise InputError(f"{migration.where}: policy.reward_model_cfg.enabled is false: it trains no reward model")
    migration.leave("policy.reward_model_cfg.enabled", "rmjax trains reward models only")
    kind = migration.choose("policy.reward_model_cfg.reward_model_type", {"bradley_terry": "bradley_terry"})
    migration.take("policy.reward_model_cfg.reward_model_type", objective__name=kind)
    _data(migration)
    _training(migration)
    migration.differences += [
        "NeMo-RL computes rewards and loss in policy.precision, where bfloat16 rounds them to ties; rmjax's head and "
        "loss are float32.",
        "NeMo-RL's default chat template of Llama 3 writes no date; rmjax writes data.template_date, the day of the "
        "start if it is empty.",
    ]


def _data(migration: Migration) -> None:
    lengths = ("policy.max_total_sequence_length", "data.max_input_seq_length")
    known = {name: migration[name] for name in lengths if migration.given.get(name) is not None}
    longest = min(known, key=lambda name: known[name]) if known else lengths[0]
    migration.take(longest, data__max_length=migration[longest] or 8192)
    for other in lengths:
        migration.leave(other, f"{longest} bounds the texts")
    dataset = _NAMES.get(migration["data.dataset_name"] or "", migration["data.dataset_name"])
    for split, names in (
        ("train", ("data.train", "data.train_data_path")),
        ("validation", ("data.validation", "data.val_data_path", "data.val_data_paths")),
    ):
        found: list[str] = []
        given = [name for name in names if migration[name] is not None]
        for name in given:
            found += _sources(migration, name, split)
        if not found and dataset:
            found = [f"{dataset}:{split}"]
        key = {f"data__{split}": found or (configs.REQUIRED,)}
        migration.take(given[0] if given else names[0], **key)
        for name in given[1:]:
            migration.take(name, **key)
    migration.take("data.dataset_name", data__strings="chat")


def _sources(migration: Migration, name: str, split: str) -> list[str]:
    """Returns the sources of a value: a file, {name: file}, or {dataset_name, data_path, split}."""
    value = migration[name]
    entries = value if isinstance(value, list) else [value]
    sources: list[str] = []
    for entry in entries:
        if isinstance(entry, dict) and not set(entry) & {"dataset_name", "data_path"}:
            sources += [f"{label}={path}" for label, path in entry.items()]
        elif isinstance(entry, dict):
            if unknown := set(entry) - {"dataset_name", "data_path", "split", "subset"}:
                raise InputError(
                    f"{migration.where}: {name} has {sorted(unknown)[0]!r}; expected data_path or dataset_name"
                )
            dataset = _NAMES.get(str(entry.get("dataset_name")), entry.get("dataset_name"))
            sources += listed(entry.get("data_path")) or [f"{dataset}:{entry.get('split', split)}"]
        else:
            sources += listed(entry)
    return sources


def _training(migration: Migration) -> None:
    migration.take("rm.max_num_steps", train__steps=max(migration["rm.max_num_steps"], 0))
    migration.take("rm.val_period", evaluation__every=max(migration["rm.val_period"], 0))
    limit = max(migration["rm.val_batches"], 0) * migration["rm.val_global_batch_size"]
    migration.take("rm.val_batches", data__validation_limit=limit)
    types = {"bfloat16": "bfloat16", "float32": "float32"}
    migration.take("policy.precision", model__dtype=migration.choose("policy.precision", types))
    names = ("policy.activation_checkpointing_enabled", "policy.dtensor_cfg.activation_checkpointing")
    remat = "layer" if any(migration[name] for name in names) else "small"
    for name in names:
        migration.take(name, model__remat=remat)
    migration.take("policy.optimizer.name", optimizer__name=migration.choose("policy.optimizer.name", _OPTIMIZERS))
    betas = migration["policy.optimizer.kwargs.betas"]
    migration.take("policy.optimizer.kwargs.betas", optimizer__b1=float(betas[0]), optimizer__b2=float(betas[1]))
    migration.take("policy.max_grad_norm", optimizer__grad_clip=migration["policy.max_grad_norm"] or 0.0)
    if migration["policy.scheduler"]:
        migration.config["optimizer.schedule"] = "constant"
        migration.leave(
            "policy.scheduler",
            "a list of PyTorch's schedulers; the rate is constant: set optimizer.schedule and optimizer.warmup_steps",
        )
    else:
        migration.take("policy.scheduler", optimizer__schedule="constant")
    metric = migration["checkpointing.metric_name"]
    wanted = next((name for name in ("loss", "accuracy") if metric and metric.endswith(name)), None)
    if wanted:
        migration.take("checkpointing.metric_name", checkpoint__best=wanted)
    else:
        migration.leave("checkpointing.metric_name", "not a validation metric of rmjax; see docs/glossary.md")
    migration.take("checkpointing.keep_top_k", checkpoint__keep_best=max(migration["checkpointing.keep_top_k"] or 1, 1))
    migration.take("logger.wandb_enabled", train__loggers=("wandb",) if migration["logger.wandb_enabled"] else ())
    migration.take("policy.dtensor_cfg.enabled", mesh__data=1, mesh__fsdp=-1)  # PyTorch's FSDP


_OPTIMIZERS = {"torch.optim.AdamW": "adamw", "AdamW": "adamw"}
