"""OpenRLHF's train_rm: its options of 2026, dotted, and those of before (November 2026)."""

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.migration.keys import Migration, expand

PROGRAMS = ("train_rm",)
_DEEPSPEED = "an option of DeepSpeed; XLA shards and overlaps by mesh.*"
KEYS = expand(
    {
        "ckpt.output_dir ckpt.path": ("str", None, "", "give --workdir"),
        "ckpt.save_steps": ("int", -1),
        "ckpt.save_hf ckpt.disable_ds": ("bool", False, "", "export the run: rmjax.export"),
        "ckpt.max_num": ("int", 3, "checkpoint.keep"),
        "ckpt.max_mem": ("float", 1e8, "", "the number of checkpoints is bounded, not their size"),
        "ckpt.load_enable": ("bool", False, "", "a run resumes if its --workdir has a checkpoint"),
        "ds.use_universal_ckpt": ("bool", False, "", "checkpoints fit any mesh"),
        "logger.logging_steps": ("int", 1, "train.log_every"),
        "logger.wandb.key": ("str", None),
        "logger.wandb.org logger.wandb.group logger.wandb.project logger.wandb.run_name": (
            "str", None, "", "set wandb's variables WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_PROJECT, WANDB_NAME",
        ),
        "logger.tensorboard_dir": ("str", None, "", "TensorBoard's files are in the workdir"),
        "model.model_name_or_path": ("str", None),
        "ds.value_head_prefix": ("str", "score", "", "the head's tensor is `score`"),
        "model.gradient_checkpointing_enable": ("bool", False),
        "model.gradient_checkpointing_reentrant": ("bool", False, "", "an option of PyTorch"),
        "model.aux_loss_coef": ("float", 0.0, "", "the routers of experts have no loss of their own"),
        "model.compute_fp32_loss_enable": ("bool", False, "", "the head and the loss are always float32"),
        "model.margin_loss_enable": ("bool", False, "objective.margin"),
        "model.loss_type": ("str", "sigmoid"),
        "train.seed": ("int", 42, "train.seed"),
        "train.full_determinism_enable": ("bool", False, "", "runs are deterministic"),
        "train.max_epochs": ("float", 1, "train.epochs"),
        "train.micro_batch_size": ("int", 1, "train.rows_per_device"),
        "train.batch_size": ("int", 128, "train.batch_size"),
        "eval.steps": ("int", -1),
        "optim": ("str", "adam"),
        "adam.lr": ("float", 9e-6),
        "adam.betas": ("list", [0.9, 0.95]),
        "adam.eps": ("float", 1e-8, "optimizer.eps"),
        "adam.weight_decay": ("float", 0.0, "optimizer.weight_decay"),
        "muon.lr": ("float", 0.02),
        "muon.momentum muon.ns_steps muon.nesterov muon.no_nesterov": (
            "any", None, "", "Muon has momentum 0.95, Nesterov's form and five iterations",
        ),
        "lr_scheduler": ("str", "cosine_with_min_lr"),
        "lr_warmup_ratio": ("float", 0.03),
        "min_lr_ratio": ("float", 0.1),
        "max_norm": ("float", 1.0, "optimizer.grad_clip"),
        "local_rank": ("int", -1, "", "the launcher's"),
        "ds.zero_stage": ("int", 2),
        "ds.param_dtype": ("str", "bf16"),
        "bf16 flash_attn": ("bool", None, "", "ds.param_dtype decides; model.attention chooses the kernel"),
        "ds.zpg ds.adam_offload ds.overlap_comm ds.deepcompile ds.grad_accum_dtype": ("any", None, "", _DEEPSPEED),
        "ds.attn_implementation ds.experts_implementation": ("str", None, "", "model.attention chooses the kernel"),
        "ds.tensor_parallel_size": ("int", 1, "mesh.tensor"),
        "ds.ring_attn_size": ("int", 1, "mesh.sequence"),
        "ds.ring_attn_head_stride": ("int", 1, "", "an option of ring attention"),
        "ds.packing_samples": ("bool", False, "", "rows are always packed"),
        "ds.load_in_4bit": ("bool", False),
        "ds.lora.rank": ("int", 0, "lora.rank"),
        "ds.lora.alpha": ("float", 16, "lora.alpha"),
        "ds.lora.dropout": ("float", 0.0, "", "adapters have no dropout"),
        "ds.lora.target_modules": ("list", ["all-linear"]),
        "data.dataset": ("str", None),
        "data.dataset_probs": ("list", None),
        "eval.dataset": ("str", None),
        "data.dataset_split eval.split": ("str", "train"),
        "data.max_samples": ("float", 1e6),
        "data.prompt_key data.chosen_key data.rejected_key": ("str", None),
        "data.input_template": ("str", None),
        "data.apply_chat_template": ("bool", False),
        "data.tokenizer_chat_template": ("str", None, "", "the chat template is that of the tokenizer; edit it there"),
        "data.max_len": ("int", 512, "data.max_length"),
        "data.disable_fast_tokenizer": ("bool", False, "", "tokenizers are fast ones"),
        "data.dataloader_num_workers": ("int", 0, "", "data are tokenized once, and cached"),
        "use_ms": ("bool", False, "", "models and data come from files or the Hugging Face hub"),
    }
)  # fmt: skip
# The options of before April 2026, and short forms of today's.
ALIASES = {
    "save_path": "ckpt.output_dir", "save_steps": "ckpt.save_steps", "save_hf_ckpt": "ckpt.save_hf",
    "disable_ds_ckpt": "ckpt.disable_ds", "ckpt_path": "ckpt.path", "max_ckpt_num": "ckpt.max_num",
    "max_ckpt_mem": "ckpt.max_mem", "load_checkpoint": "ckpt.load_enable",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt",
    "logging_steps": "logger.logging_steps", "use_wandb": "logger.wandb.key", "wandb_org": "logger.wandb.org",
    "wandb_group": "logger.wandb.group", "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.run_name", "use_tensorboard": "logger.tensorboard_dir",
    "pretrain": "model.model_name_or_path", "value_head_prefix": "ds.value_head_prefix",
    "gradient_checkpointing": "model.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "aux_loss_coef": "model.aux_loss_coef", "compute_fp32_loss": "model.compute_fp32_loss_enable",
    "margin_loss": "model.margin_loss_enable", "loss": "model.loss_type", "seed": "train.seed",
    "full_determinism": "train.full_determinism_enable", "max_epochs": "train.max_epochs",
    "micro_train_batch_size": "train.micro_batch_size", "train_batch_size": "train.batch_size",
    "eval_steps": "eval.steps", "learning_rate": "adam.lr", "adam_betas": "adam.betas", "l2": "adam.weight_decay",
    "zero_stage": "ds.zero_stage", "zpg": "ds.zpg", "adam_offload": "ds.adam_offload",
    "attn_implementation": "ds.attn_implementation", "grad_accum_dtype": "ds.grad_accum_dtype",
    "overlap_comm": "ds.overlap_comm", "deepcompile": "ds.deepcompile",
    "ds_tensor_parallel_size": "ds.tensor_parallel_size", "ring_attn_size": "ds.ring_attn_size",
    "ring_head_stride": "ds.ring_attn_head_stride", "packing_samples": "ds.packing_samples",
    "load_in_4bit": "ds.load_in_4bit", "lora_rank": "ds.lora.rank", "lora_alpha": "ds.lora.alpha",
    "lora_dropout": "ds.lora.dropout", "target_modules": "ds.lora.target_modules", "dataset": "data.dataset",
    "dataset_probs": "data.dataset_probs", "eval_dataset": "eval.dataset", "dataset_split": "data.dataset_split",
    "eval_split": "eval.split", "max_samples": "data.max_samples", "prompt_key": "data.prompt_key",
    "chosen_key": "data.chosen_key", "rejected_key": "data.rejected_key", "input_template": "data.input_template",
    "apply_chat_template": "data.apply_chat_template", "tokenizer_chat_template": "data.tokenizer_chat_template",
    "max_len": "data.max_len", "disable_fast_tokenizer": "data.disable_fast_tokenizer",
    "dataloader_num_workers": "data.dataloader_num_workers",
}  # fmt: skip
_SCHEDULES = {
    "cosine_with_min_lr": "cosine",
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_FIELDS = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"}


def convert(migration: Migration) -> None:
    """Takes the keys over whose counterparts depend on several keys or on the value."""
    migration.take("model.model_name_or_path", model__path=migration["model.model_name_or_path"] or configs.REQUIRED)
    _data(migration)
    _optimizer(migration)
    if migration["ds.load_in_4bit"]:
        raise InputError(
            f"{migration.where}: --ds.load_in_4bit: there are no 4-bit weights; remove it, and set "
            "model.frozen_dtype = int8 with adapters"
        )
    migration.leave("ds.load_in_4bit", "there are no 4-bit weights")
    migration.choose("model.loss_type", {"sigmoid": 1, "logexp": 1, "LogExp": 1})
    migration.take("model.loss_type", objective__name="bradley_terry")
    remat = "layer" if migration["model.gradient_checkpointing_enable"] else "small"
    migration.take("model.gradient_checkpointing_enable", model__remat=remat)
    types = {"bf16": "bfloat16", "fp16": "bfloat16", "fp32": "float32"}
    migration.take("ds.param_dtype", model__dtype=migration.choose("ds.param_dtype", types))
    sharded = migration["ds.zero_stage"] > 0
    migration.take("ds.zero_stage", mesh__data=1 if sharded else -1, mesh__fsdp=-1 if sharded else 1)
    for name, key in (("eval.steps", "evaluation__every"), ("ckpt.save_steps", "checkpoint__every")):
        migration.take(name, **{key: max(migration[name], 0)})
    key = migration["logger.wandb.key"]
    migration.take("logger.wandb.key", train__loggers=("wandb",) if key else ())
    targets = migration["ds.lora.target_modules"]
    if targets in (["all-linear"], None):
        migration.take("ds.lora.target_modules", lora__targets="")
    else:
        migration.take("ds.lora.target_modules", lora__targets=lora_targets(migration, targets))
    migration.differences += [
        "OpenRLHF cuts texts of more than --data.max_len tokens at the end and puts EOS there; rmjax leaves such "
        "comparisons out and counts them (data.on_overlong).",
        "OpenRLHF reports the mean of the means of batches as accuracy; rmjax the mean over comparisons.",
        "OpenRLHF with adapters wraps the head too, or saves it by an option; rmjax always trains and saves it.",
    ]


def _data(migration: Migration) -> None:
    dataset, probabilities = migration["data.dataset"], migration["data.dataset_probs"]
    split = migration["data.dataset_split"]
    train = _sources(dataset, split) if dataset else [configs.REQUIRED]
    migration.take("data.dataset", data__train=train)
    migration.leave("data.dataset_split", "part of data.train, for hub names")
    if probabilities:
        migration.take("data.dataset_probs", data__weights=[float(share) for share in probabilities])
    if evaluation := migration["eval.dataset"]:
        migration.take("eval.dataset", data__validation=_sources(evaluation, migration["eval.split"]))
    else:
        migration.take("eval.dataset", data__validation=(configs.REQUIRED,))
        migration.differences.append(
            "Without --eval.dataset OpenRLHF validates on 1 % of the training data; rmjax needs other data: set "
            "data.validation."
        )
    migration.leave("eval.split", "part of data.validation, for hub names")
    columns = [
        f"{migration[f'data.{key}']}={field}"
        for key, field in _FIELDS.items()
        if migration[f"data.{key}"] not in (None, field)
    ]
    for key in _FIELDS:
        migration.take(f"data.{key}", data__columns=columns)
    if template := migration["data.input_template"]:
        raise InputError(
            f"{migration.where}: --data.input_template is {template!r}; rmjax has no templates of strings: write the "
            "text into the data, or use --data.apply_chat_template"
        )
    migration.leave("data.input_template", "no template is set")
    strings = "chat" if migration["data.apply_chat_template"] else "joined"
    migration.take("data.apply_chat_template", data__strings=strings)
    limit = int(migration["data.max_samples"])
    migration.take("data.max_samples", data__train_limit=limit if limit < 10**6 else 0)


def _sources(names: str, split: str) -> list[str]:
    """Returns comma-separated files and hub names as sources; the latter get their split."""
    hub = lambda name: name.count("/") == 1 and not name.startswith((".", "/", "~")) and "." not in name.rsplit("/")[-1]
    parts = [part.strip() for part in names.split(",")]
    return [f"{part}:{split}" if hub(part) and ":" not in part else part for part in parts]


def _optimizer(migration: Migration) -> None:
    name = migration.choose("optim", {"adam": "adamw", "muon": "muon"})
    migration.take("optim", optimizer__name=name)
    used, other = ("muon.lr", "adam.lr") if name == "muon" else ("adam.lr", "muon.lr")
    migration.take(used, optimizer__learning_rate=migration[used])
    migration.leave(other, f"optimizer.name is {name}, with one learning rate for all parameters")
    betas = migration["adam.betas"]
    if len(betas) != 2:
        raise InputError(f"{migration.where}: --adam.betas is {betas}; expected two numbers")
    migration.take("adam.betas", optimizer__b1=float(betas[0]), optimizer__b2=float(betas[1]))
    schedule = migration.choose("lr_scheduler", _SCHEDULES)
    migration.take("lr_scheduler", optimizer__schedule=schedule)
    if migration["lr_scheduler"] == "cosine_with_min_lr":
        migration.take("min_lr_ratio", optimizer__final_fraction=migration["min_lr_ratio"])
    migration.leave("min_lr_ratio", f"--lr_scheduler {migration['lr_scheduler']} does not read it")
    ratio = migration["lr_warmup_ratio"]
    migration.leave(
        "lr_warmup_ratio", f"a share: set optimizer.warmup_steps to {ratio} times the steps that rmjax prints"
    )
    if "lr_warmup_ratio" not in migration.given and ratio:
        migration.differences.append(
            f"OpenRLHF warms up for a share of {ratio} of the steps (--lr_warmup_ratio); set optimizer.warmup_steps."
        )


_MODULES = {
    "q_proj": "attention/query", "k_proj": "attention/key", "v_proj": "attention/value", "o_proj": "attention/output",
    "gate_proj": "mlp/gate", "up_proj": "mlp/up", "down_proj": "mlp/down",
}  # fmt: skip


def lora_targets(migration: Migration, targets: list[str]) -> str:
    """Returns `lora.targets` for names of Hugging Face modules.

    Raises:
      InputError: a name is not known.
    """
    if unknown := [name for name in targets if name not in _MODULES]:
        raise InputError(
            f"{migration.where}: adapters of {unknown[0]!r}; rmjax knows all-linear, {', '.join(_MODULES)}"
        )
    return "|".join(_MODULES[name] for name in targets)
