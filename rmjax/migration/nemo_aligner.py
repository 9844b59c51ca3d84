"""NeMo-Aligner's training_rm.yaml.

Keys and defaults: examples/nlp/gpt/conf/training_rm.yaml and the keys that its trainer reads besides, November 2026.
"""

from typing import Any

from rmjax.core.errors import InputError
from rmjax.migration import nemo_data
from rmjax.migration.keys import Migration, expand

_XLA = "communication and its overlap are XLA's"
_WHOLE = "not used by reward model training"
KEYS = expand(
    {
        "trainer.num_nodes trainer.devices": ("any", 8, "", "devices are found; see mesh.*"),
        "trainer.accelerator": ("str", "gpu", "", "the platform is found"),
        "trainer.precision": ("str", "bf16"),
        "trainer.rm.max_epochs": ("float", 1, "train.epochs"),
        "trainer.rm.max_steps": ("int", -1),
        "trainer.rm.val_check_interval": ("any", 100),
        "trainer.rm.save_interval": ("int", 100, "checkpoint.every"),
        "trainer.rm.train_random_sampler": ("bool", True, "data.shuffle"),
        "trainer.rm.val_random_sampler": ("bool", False, "", "the order of validation has no effect"),
        "trainer.rm.limit_val_batches trainer.rm.limit_train_batches": ("any", 1.0),
        "trainer.rm.gradient_clip_val": ("float", 1.0, "optimizer.grad_clip"),
        "trainer.logger trainer.enable_checkpointing trainer.use_distributed_sampler": ("any", False, "", _WHOLE),
        "trainer.max_epochs trainer.max_steps": ("any", None, "", "trainer.rm.* decides"),
        "trainer.max_time exp_manager.max_time_per_run": (
            "any", None, "", "send SIGTERM: a checkpoint is saved, and the run resumes",
        ),
        "exp_manager.explicit_log_dir exp_manager.exp_dir": ("str", None, "", "give --workdir"),
        "exp_manager.name": ("str", "megatron_gpt", "name"),
        "exp_manager.create_wandb_logger": ("bool", False),
        "exp_manager.wandb_logger_kwargs.project": ("str", None, "", "set the variable WANDB_PROJECT"),
        "exp_manager.wandb_logger_kwargs.name": ("str", None, "", "wandb's run has the name of the workdir"),
        "exp_manager.resume_from_checkpoint exp_manager.resume_if_exists exp_manager.resume_ignore_no_checkpoint": (
            "any", None, "", "a run resumes if its --workdir has a checkpoint",
        ),
        "exp_manager.create_checkpoint_callback": ("bool", True, "", "checkpoints are always saved"),
        "exp_manager.checkpoint_callback_params.monitor": ("str", "val_loss"),
        "exp_manager.checkpoint_callback_params.save_top_k": ("int", 3),
        "exp_manager.checkpoint_callback_params.mode": ("str", "min", "", "follows from the metric"),
        "exp_manager.checkpoint_callback_params.always_save_nemo "
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": ("bool", None, "", "use rmjax.export"),
        "exp_manager.checkpoint_callback_params.filename "
        "exp_manager.checkpoint_callback_params.model_parallel_size": (
            "any", None, "", "checkpoints have the name of their step and fit any mesh",
        ),
        "pretrained_checkpoint.restore_from_path": ("str", None),
        "model.mcore_gpt model.share_embeddings_and_output_weights": (
            "bool", None, "", "the architecture is that of the model's config.json",
        ),
        "model.reward_model_type": ("str", "binary_ranking"),
        "model.regression.num_attributes": ("int", 1),
        "model.regression.merge_attributes model.regression.attribute_weights": (
            "any", None, "", "rmjax.export --merge=attribute=weight (null weights: the mean)",
        ),
        "model.regression.loss_mask_val model.loss_mask_val": ("float", -100.0),
        "model.regression.loss_func model.loss_func": ("str", "regression"),
        "model.regression.load_rm_head_weights": (
            "bool", False, "", "a model.path with a reward head keeps its head, without one it gets a new one",
        ),
        "model.output_sequence": ("bool", False, "", "of the critic; rmjax.serve --critic"),
        "model.use_avg_pool": ("bool", False),
        "model.force_head_dtype": ("str", "bfloat16", "", "the head is float32: bfloat16 rounds rewards to ties"),
        "model.micro_batch_size": ("int", 2, "train.rows_per_device"),
        "model.global_batch_size": ("int", 64),
        "model.megatron_amp_O2": ("bool", True, "", "trained parameters are always stored in float32"),
        "model.forward_micro_batch_size": ("int", None, "", "validation uses evaluation.batch_size"),
        "model.encoder_seq_length model.data.seq_length": ("int", None),
        "model.max_position_embeddings": ("int", None, "", "that of config.json; data.max_length bounds texts"),
        "model.seed": ("int", 1234, "train.seed"),
        "model.optim.name": ("str", "distributed_fused_adam"),
        "model.optim.bucket_cap_mb model.optim.overlap_grad_sync model.optim.overlap_param_sync "
        "model.optim.contiguous_grad_buffer model.optim.contiguous_param_buffer model.optim.grad_sync_dtype": (
            "any", None, "", _XLA,
        ),
        "model.optim.lr": ("float", 9e-6, "optimizer.learning_rate"),
        "model.optim.weight_decay": ("float", 0.1, "optimizer.weight_decay"),
        "model.optim.eps": ("float", 1e-8, "optimizer.eps"),
        "model.optim.betas": ("list", [0.9, 0.98]),
        "model.optim.sched.name": ("str", "CosineAnnealing"),
        "model.optim.sched.warmup_steps": ("int", 10, "optimizer.warmup_steps"),
        "model.optim.sched.constant_steps": ("int", 1000),
        "model.optim.sched.min_lr": ("float", 9e-7),
        "model.data.data_impl": ("str", "jsonl"),
        "model.data.splits_string": ("str", None),
        "model.data.skip_warmup model.data.num_workers": ("any", None, "", "data are tokenized once, and cached"),
        "model.data.reset_position_ids model.data.reset_attention_mask model.data.eod_mask_loss": (
            "bool", False, "", "each conversation has positions and attention of its own",
        ),
        "model.data.index_mapping_dir": ("str", None, "", "the cache directory is RMJAX_CACHE"),
        "model.data.data_prefix": ("any", None),
        "model.data.append_eod": ("bool", False, "", "`text` lines are tokenized as they are: end them with the token"),
        "model.data.apply_ftfy": ("bool", False, "", "texts are not altered: apply it to the data"),
        "model.data.validation_drop_last": ("bool", True, "", "validation covers all of its data"),
        "model.data.shuffle_documents": ("bool", True, "", "trainer.rm.train_random_sampler decides"),
        "model.tensor_model_parallel_size": ("int", 1, "mesh.tensor"),
        "model.context_parallel_size": ("int", 1, "mesh.sequence"),
        "model.pipeline_model_parallel_size model.virtual_pipeline_model_parallel_size": (
            "int", 1, "", "there is no pipeline: mesh.fsdp shards the parameters over the same devices",
        ),
        "model.sequence_parallel": ("bool", False, "", "XLA shards activations with mesh.tensor"),
        "model.activations_checkpoint_granularity": ("str", None),
        "model.activations_checkpoint_method model.activations_checkpoint_num_layers "
        "model.activations_checkpoint_layers_per_pipeline": ("any", None, "", "model.remat has no such option"),
        "model.override_vocab_size": ("int", None, "", "that of the model's config.json"),
        "model.precision": ("any", None, "", "trainer.precision decides"),
        "model.ub_tp_comm_overlap model.ub_tp_comm_overlap_cfg": ("any", None, "", _XLA),
        "model.overwrite_base_config.data.data_prefix": ("bool", True, "", "the configuration's data are used"),
    }
)  # fmt: skip
WHOLE = ("model.data.data_prefix", "model.ub_tp_comm_overlap_cfg")  # keys whose values are mappings
_LOSSES = {
    "regression": {},
    "regular_bt": {},
    "margin_bt": {"objective__margin": True},
    "scaled_bt": {"objective__strength": True},
}
_MONITORS = {"val_loss": "loss", "val_acc": "accuracy", "val_accuracy": "accuracy"}
_ADAM = ("distributed_fused_adam", "mcore_distributed_optim", "fused_adam", "megatron_fused_adam", "adamw")


def convert(migration: Migration) -> None:
    """Takes the keys over whose counterparts depend on several keys or on the value."""
    _objective(migration)
    nemo_data.convert(migration)
    _optimizer(migration)
    _duration(migration)
    _checkpoints(migration)
    precisions = {"bf16": "bfloat16", "bf16-mixed": "bfloat16", "32": "float32", "32-true": "float32"}
    migration.take("trainer.precision", model__dtype=migration.choose("trainer.precision", precisions))
    granularity = {"None": "small", "selective": "small", "full": "layer"}
    name = "model.activations_checkpoint_granularity"
    migration.take(name, model__remat=migration.choose(name, granularity))
    readout = "conversation_mean" if migration["model.use_avg_pool"] else ""
    migration.take("model.use_avg_pool", data__readout=readout)
    migration.differences += [
        "NeMo-Aligner's reward head has a bias, which a Bradley-Terry loss cannot train; rmjax's new heads have none.",
        "NeMo-Aligner decays all matrices, among them embedding and head; rmjax those of the layers only.",
    ]


def _objective(migration: Migration) -> None:
    kind = migration.choose("model.reward_model_type", {"binary_ranking": "binary", "regression": "regression"})
    nested, top = "model.regression.loss_func", "model.loss_func"
    mask = "model.loss_mask_val" if "model.loss_mask_val" in migration.given else "model.regression.loss_mask_val"
    batch = migration["model.global_batch_size"]
    if kind == "binary":
        migration.take("model.reward_model_type", objective__name="bradley_terry", data__format="nemo_binary")
        migration.take("model.global_batch_size", train__batch_size=batch)
        for name in (nested, top, mask, "model.regression.loss_mask_val", "model.regression.num_attributes"):
            migration.leave(name, "of regression; model.reward_model_type is binary_ranking")
        return
    name = top if top in migration.given else nested
    options = migration.choose(name, _LOSSES)
    preference = migration[name] != "regression"
    format = "nemo_preference" if preference else "nemo_regression"
    objective = "regression_bt" if preference else "regression"
    migration.take("model.reward_model_type", data__format=format)
    migration.take(name, objective__name=objective, **options)
    if name == top:
        migration.leave(nested, f"NeMo-Aligner's loss reads {top}, which is set too")
    elif preference:
        migration.differences.append(
            f"NeMo-Aligner's loss reads {top}, not the documented {nested}: it would have trained the mean squared "
            f"error of this configuration unless started with ++{top}={migration[nested]}. rmjax trains what {nested} "
            f"names; to repeat NeMo-Aligner's run, set objective.name = regression, data.format = nemo_regression and "
            f"train.batch_size = {batch}."
        )
    if preference:
        if batch % 2:
            raise InputError(f"{migration.where}: model.global_batch_size is {batch}; expected lines of whole pairs")
        batch //= 2
        migration.differences.append("NeMo-Aligner's batch counts lines; a pair has two, so train.batch_size is half.")
    migration.take("model.global_batch_size", train__batch_size=batch)
    migration.take(mask, data__missing_label=migration[mask])
    migration.leave("model.regression.loss_mask_val", "NeMo-Aligner's loss reads model.loss_mask_val, which is set too")
    if mask == "model.regression.loss_mask_val" and migration[mask] != -100:
        migration.differences.append(
            "NeMo-Aligner's loss reads model.loss_mask_val, not the documented model.regression.loss_mask_val: it "
            "would have masked labels of -100."
        )
    count = migration["model.regression.num_attributes"]
    column = 4 if preference and count == 9 else 0  # helpfulness, of the recipes' nine attributes
    if preference:
        migration.take("model.regression.num_attributes", data__preference_label=column)
    migration.leave("model.regression.num_attributes", "the head has an output for each label of the data")


def _optimizer(migration: Migration) -> None:
    name = migration.choose("model.optim.name", dict.fromkeys(_ADAM, "adamw"))
    migration.take("model.optim.name", optimizer__name=name, mesh__data=1, mesh__fsdp=-1)  # its state is sharded
    betas = migration["model.optim.betas"]
    if len(betas) != 2:
        raise InputError(f"{migration.where}: model.optim.betas is {betas}; expected two numbers")
    migration.take("model.optim.betas", optimizer__b1=float(betas[0]), optimizer__b2=float(betas[1]))
    rate, least = migration["model.optim.lr"], migration["model.optim.sched.min_lr"] or 0.0
    schedule = migration.choose("model.optim.sched.name", {"CosineAnnealing": "cosine", "None": "constant"})
    constant = schedule == "constant" or least == rate
    migration.take("model.optim.sched.name", optimizer__schedule="constant" if constant else schedule)
    steps, final = migration["trainer.rm.max_steps"], migration["model.optim.sched.constant_steps"] or 0
    warmup = migration["model.optim.sched.warmup_steps"] or 0
    if constant:
        migration.leave("model.optim.sched.min_lr", "the learning rate stays the same after the warm-up")
        migration.leave("model.optim.sched.constant_steps", "the learning rate stays the same after the warm-up")
        return
    migration.take("model.optim.sched.min_lr", optimizer__final_fraction=float(f"{least / rate:.12g}") if rate else 0.0)
    if 0 < steps <= warmup + final:
        migration.leave(
            "model.optim.sched.constant_steps", f"trainer.rm.max_steps = {steps} leaves no step for a decay"
        )
    else:
        migration.take("model.optim.sched.constant_steps", optimizer__final_steps=final)


def _duration(migration: Migration) -> None:
    migration.take("trainer.rm.max_steps", train__steps=max(migration["trainer.rm.max_steps"], 0))
    name = "trainer.rm.val_check_interval"
    if isinstance(migration[name], int):
        migration.take(name, evaluation__every=migration[name])
    else:
        migration.leave(name, "a share of an epoch: evaluation.every is a number of steps (0: ten validations per run)")
    batch = migration.config["train.batch_size"]
    for split, key in (("val", "data__validation_limit"), ("train", "data__train_limit")):
        name = f"trainer.rm.limit_{split}_batches"
        value: Any = migration[name]
        if isinstance(value, int) and not isinstance(value, bool):
            migration.take(name, **{key: value * batch})
        elif value in (1.0, None):
            migration.take(name, **{key: 0})
        else:
            migration.leave(
                name, f"a share of the data: {key.replace('__', '.')} is a number of comparisons per source"
            )


def _checkpoints(migration: Migration) -> None:
    prefix = "exp_manager.checkpoint_callback_params"
    if (monitor := migration[f"{prefix}.monitor"]) in _MONITORS:
        migration.take(f"{prefix}.monitor", checkpoint__best=_MONITORS[monitor])
    else:
        migration.leave(f"{prefix}.monitor", "not a validation metric of rmjax; see docs/glossary.md")
    if (count := migration[f"{prefix}.save_top_k"]) > 0:
        migration.take(f"{prefix}.save_top_k", checkpoint__keep_best=count)
    else:
        migration.leave(f"{prefix}.save_top_k", "at least one best checkpoint is kept; set checkpoint.keep_best")
    loggers = ("wandb",) if migration["exp_manager.create_wandb_logger"] else ()
    migration.take("exp_manager.create_wandb_logger", train__loggers=loggers)
