"""Configurations of other trainers: each key has a counterpart or a reason; the written file is one of rmjax's."""

import json

import pytest
import yaml

import rmjax.migrate as program
from rmjax.core import config as configs
from rmjax.core import config_file
from rmjax.core.config_checks import check
from rmjax.core.errors import InputError
from rmjax.migration.keys import Migration
from rmjax.migration.output import render, report
from rmjax.migration.trainers import TRAINERS, migrate
from rmjax.training.experiment import train
from tests.conftest import ROOT
from tests.training.conftest import tiny as tiny_config

BINARY = {
    "defaults": [{"optional tp_overlap@model.ub_tp_comm_overlap_cfg": None}],
    "trainer": {"precision": "bf16", "rm": {"max_epochs": 2, "max_steps": 50}},
    "exp_manager": {"create_wandb_logger": False, "checkpoint_callback_params": {"save_top_k": 2}},
    "pretrained_checkpoint": {"restore_from_path": "base.nemo"},
    "model": {
        "encoder_seq_length": 2048,
        "micro_batch_size": 4,
        "forward_micro_batch_size": "${.micro_batch_size}",
        "global_batch_size": 32,
        "optim": {"lr": "4e-6", "betas": [0.9, 0.95], "sched": {"min_lr": "1e-6", "constant_steps": 5}},
        "data": {
            "seq_length": "${model.encoder_seq_length}",
            "data_prefix": {
                "train": [0.3, "a.jsonl", 0.7, "b.jsonl"],
                "validation": ["v.jsonl"],
                "validation_x": "x.jsonl",
            },
        },
    },
}
RL = {
    "rm": {"max_num_epochs": 2, "val_period": 8},
    "checkpointing": {"keep_top_k": 4, "save_period": "${rm.val_period}"},
    "policy": {
        "model_name": "org/model",
        "tokenizer": {"name": "${policy.model_name}"},
        "max_total_sequence_length": 512,
        "dtensor_cfg": {"tensor_parallel_size": 2},
        "optimizer": {"kwargs": {"lr": 3e-6, "betas": [0.8, 0.9]}},
    },
    "data": {"max_input_seq_length": "${policy.max_total_sequence_length}", "dataset_name": "HelpSteer3"},
}
TRL = {
    "model_name_or_path": "org/model",
    "dataset_name": "org/pairs",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "max_steps": 200,
    "warmup_ratio": 0.1,
    "center_rewards_coefficient": 0.01,
    "use_peft": True,
    "lora_r": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "bf16": True,
    "metric_for_best_model": "eval_accuracy",
    "report_to": "wandb",
}
SCRIPT = """set -x
MODEL=org/model
read -r -d '' command <<EOF
openrlhf.cli.train_rm \\
   --pretrain $MODEL --dataset org/pairs --eval_dataset held.jsonl \\
   --train_batch_size 256 --micro_train_batch_size 2 --max_len 8192 --learning_rate 9e-6 --adam_betas 0.9 0.95 \\
   --zero_stage 3 --apply_chat_template --chosen_key good --margin_loss \\
   --packing_samples --gradient_checkpointing
EOF
deepspeed --module $command
"""


def changed(source, tmp_path, content, *overrides):
    """Returns the migration of `content`, a tree of keys or a text."""
    file = tmp_path / ("file.sh" if isinstance(content, str) else "file.yaml")
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return migrate(source, str(file), overrides=overrides)


CASES = {
    "nemo_aligner": (BINARY, {
        "model.path": "base", "model.dtype": "bfloat16", "data.train": ("a.jsonl", "b.jsonl"),
        "data.weights": (0.3, 0.7),
        "data.validation": ("v.jsonl", "x=x.jsonl"),
        "data.format": "nemo_binary", "data.max_length": 2048,
        "optimizer.learning_rate": 4e-6, "optimizer.final_fraction": 0.25, "optimizer.warmup_steps": 10,
        "optimizer.final_steps": 5, "optimizer.weight_decay": 0.1, "optimizer.b2": 0.95, "train.epochs": 2.0,
        "train.steps": 50, "train.batch_size": 32, "train.rows_per_device": 4, "train.seed": 1234, "mesh.data": 1,
        "mesh.fsdp": -1, "checkpoint.every": 100, "checkpoint.keep_best": 2, "checkpoint.best": "loss",
        "evaluation.every": 100, "name": "megatron_gpt",
    }),
    "nemo_rl": (RL, {
        "model.path": "org/model", "model.dtype": "bfloat16", "data.train": ("nvidia/HelpSteer3:train",),
        "data.validation": ("nvidia/HelpSteer3:validation",), "data.strings": "chat", "data.max_length": 512,
        "optimizer.learning_rate": 3e-6, "optimizer.b1": 0.8, "optimizer.b2": 0.9, "optimizer.weight_decay": 0.1,
        "optimizer.eps": 1e-5, "optimizer.schedule": "constant", "train.epochs": 2.0, "train.batch_size": 128,
        "train.rows_per_device": 1, "train.seed": 42, "mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 2,
        "checkpoint.every": 8, "checkpoint.keep_best": 4, "checkpoint.best": "loss", "evaluation.every": 8,
        "evaluation.batch_size": 32,
    }),
    "trl": (TRL, {
        "model.path": "org/model", "model.dtype": "bfloat16", "model.remat": "layer",
        "data.train": ("org/pairs:train",), "data.validation": ("org/pairs:test",),
        "objective.centering": 0.01, "lora.rank": 8,
        "lora.targets": "attention/query|attention/value", "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "linear", "optimizer.warmup_steps": 20, "train.trainable": "lora", "train.steps": 200,
        "train.seed": 42, "train.batch_size": 32, "train.rows_per_device": 4, "train.log_every": 10,
        "train.loggers": ("wandb",),
        "checkpoint.best": "accuracy",
    }),
    "openrlhf": (SCRIPT, {
        "model.path": "org/model", "model.dtype": "bfloat16", "model.remat": "layer",
        "data.train": ("org/pairs:train",), "data.validation": ("held.jsonl",),
        "data.columns": ("good=chosen",), "data.strings": "chat",
        "data.max_length": 8192, "objective.margin": True, "lora.alpha": 16.0, "optimizer.learning_rate": 9e-6,
        "optimizer.final_fraction": 0.1, "optimizer.b2": 0.95, "train.epochs": 1.0, "train.batch_size": 256,
        "train.rows_per_device": 2, "train.seed": 42, "mesh.data": 1, "mesh.fsdp": -1, "checkpoint.keep": 3,
    }),
}  # fmt: skip


@pytest.mark.parametrize("source", CASES)
def test_a_configuration_becomes_one_of_rmjax(source, tmp_path):
    content, expected = CASES[source]
    migration = changed(source, tmp_path, content)
    assert migration.changed() == expected
    (tmp_path / "mine.py").write_text(render(migration, "mine.py"))
    config = config_file.load(str(tmp_path / "mine.py"))
    check(config)
    assert dict(configs.leaves(config)) == dict(configs.leaves(configs.default())) | expected
    text = report(migration)
    for name in migration.given:
        assert f"* {name} = " in text, name


EXAMPLES = {"model.activations_checkpoint_granularity": "full"}  # of keys with few values
VALUES = {"bool": True, "int": 1, "float": 0.5, "str": "x", "list": ["0.9", "0.99"], "any": None}


@pytest.mark.parametrize("source", TRAINERS)
def test_each_key_is_taken_over_or_reported_and_has_a_type(source):
    """Each key alone, with its default or a value of its kind; `finish` fails for one that was forgotten."""
    name, module = TRAINERS[source]
    for key, declared in module.KEYS.items():
        value = EXAMPLES.get(key, VALUES[declared.kind] if declared.default is None else declared.default)
        if key in ("data.input_template", "model.data.splits_string"):
            continue  # refused, tested below
        migration = Migration(name, "FILE", module.KEYS, {key: value})
        module.convert(migration)
        migration.finish()
        reported = [row[0] for row in (*migration.taken, *migration.left)]
        assert key in reported or value is None, key
        assert len(reported) == len(set(reported)), key
        if declared.kind not in ("str", "any", "list"):
            with pytest.raises(InputError, match=rf"FILE: {key} is 'many'; expected"):
                Migration(name, "FILE", module.KEYS, {key: "many"})


@pytest.mark.parametrize("source", TRAINERS)
def test_a_key_with_a_new_name_takes_any_value(source):
    name, module = TRAINERS[source]
    for key, declared in module.KEYS.items():
        if declared.new and declared.kind in ("int", "float"):
            migration = Migration(name, "FILE", module.KEYS, {key: 7 if declared.kind == "int" else 0.125})
            module.convert(migration)
            migration.finish()
            assert migration.config[declared.new] == migration[key], key


@pytest.mark.parametrize("source", TRAINERS)
def test_the_page_lists_every_key(source):
    page = (ROOT / "docs" / "migration.md").read_text()
    form = {"openrlhf": "`--{}`", "trl": "`{}`"}.get(source, "`{}:`")
    assert not [key for key in TRAINERS[source][1].KEYS if form.format(key) not in page]


def write(path, value):
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return str(path)


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("nemo_aligner", {"model": {"optim": {"lrr": 1}}}, r"optim\.lrr is not a key .* did you mean model\.optim\.lr"),
        ("nemo_aligner", {"model": {"optim": {"name": "sgd"}}}, r"model\.optim\.name is 'sgd'; rmjax has"),
        ("nemo_aligner", {"model": {"seed": "${model.seed}"}}, r"model\.seed refers to itself"),
        ("nemo_aligner", {"model": {"seed": "${oc.env:SEED}"}}, r"model\.seed is \$\{oc\.env:SEED\}.* cannot resolve"),
        ("nemo_aligner", {"model": {"optim": {"lr": -1}}}, r"config\.optimizer\.learning_rate is -1"),
        ("nemo_aligner", {"model": {"data": {"splits_string": "9,1"}}}, r"split it"),
        ("nemo_aligner", "- a\n", r"holds list; expected a mapping"),
        ("nemo_rl", {"policy": {"reward_model_cfg": {"enabled": False}}}, r"trains no reward model"),
        ("nemo_rl", {"rm": {"seed": "a"}}, r"rm\.seed is 'a'; expected an integer"),
        ("trl", {"learning_rates": 1}, r"did you mean learning_rate"),
        ("trl", {"load_in_4bit": True}, r"load_in_4bit: .*int8"),
        ("trl", {"use_peft": True, "lora_target_modules": ["w1"]}, r"adapters of 'w1'"),
        ("openrlhf", "python x.py", r"no command with train_rm"),
        ("openrlhf", "train_rm --max_len", r"--data\.max_len has no value"),
        ("openrlhf", "train_rm --pretrain $X", r"variable \$X is not set"),
        ("openrlhf", "train_rm --input_template x", r"no templates of strings"),
        ("openrlhf", "train_rm --packing_sample", r"did you mean ds\.packing_samples"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_an_error(source, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        migrate(source, write(tmp_path / ("f.sh" if isinstance(content, str) else "f.yaml"), content))


def regression(loss, **top):
    return {"model": {"reward_model_type": "regression", "regression": {"num_attributes": 9, "loss_func": loss}, **top}}


def test_the_loss_that_nemo_reads_and_the_documented_one(tmp_path):
    nested = changed("nemo_aligner", tmp_path, regression("scaled_bt"))
    assert (nested.config["objective.name"], nested.config["objective.strength"]) == ("regression_bt", True)
    assert nested.config["train.batch_size"] == 32  # pairs, of 64 lines
    assert nested.config["data.preference_label"] == 4
    assert any("reads model.loss_func, not the documented" in line for line in nested.differences)
    top = changed("nemo_aligner", tmp_path, regression("scaled_bt"), "++model.loss_func=margin_bt")
    assert top.config["objective.margin"]
    assert "objective.strength" not in top.config
    plain = changed("nemo_aligner", tmp_path, regression("regression", loss_mask_val=-1))
    assert (plain.config["data.format"], plain.config["data.missing_label"]) == ("nemo_regression", -1)
    assert not any("loss_func" in line for line in plain.differences)


def test_command_lines_and_old_names(tmp_path):
    old = migrate("openrlhf", arguments="--pretrain m --l2 0.1 --eval_steps 5")
    new = migrate("openrlhf", arguments="--model.model_name_or_path=m --adam.weight_decay 0.1 --eval.steps 5")
    assert old.changed() == new.changed()
    assert migrate("trl", arguments="--learning-rate 2e-5 --bf16").config["optimizer.learning_rate"] == 2e-5
    (tmp_path / "args.json").write_text(json.dumps({"learning_rate": 2e-5, "bf16": False}))
    assert migrate("trl", str(tmp_path / "args.json")).config["model.dtype"] == "float32"


def test_a_migrated_configuration_trains_on_the_trainers_data(tmp_path, capsys):
    """NeMo-Aligner's pairs of `text` lines, in the order of the file; sizes of the model are those of the tests."""
    lines = [{"text": f"User: {i}\nAssistant: {side}"} for i in range(24) for side in ("good answer", "bad")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = str(tmp_path / "pairs.jsonl")
    tree = {"trainer": {"precision": 32, "rm": {"max_steps": 2, "train_random_sampler": False}},
            "model": {"global_batch_size": 8, "micro_batch_size": 2, "encoder_seq_length": 64,
                      "optim": {"sched": {"warmup_steps": 0, "constant_steps": 0}},
                      "data": {"data_prefix": {"train": [pairs], "validation": [pairs]}}}}  # fmt: skip
    file, output = write(tmp_path / "rm.yaml", tree), tmp_path / "mine.py"
    program.FLAGS.values.unparse_flags()
    program.FLAGS.parse(["migrate", f"--output={output}"])
    program.main(["migrate", "nemo_aligner", file, "model.seed=3"])
    program.FLAGS.values.unparse_flags()
    assert f"wrote {output}" in capsys.readouterr().out
    config = config_file.load(str(output))
    assert (config.train.seed, config.data.shuffle) == (3, False)
    config.model = tiny_config.__wrapped__().model
    config.mesh.fsdp = 1
    assert train(config, tmp_path / "run", progress=False).step == 2


def test_options_on_lines_of_their_own_and_in_a_variable_are_all_read(tmp_path):
    lines = "--model_name_or_path m\n# --learning_rate 9\n--dataset_name d\n\n--learning_rate 0.5"
    assert migrate("trl", arguments=lines).changed()["optimizer.learning_rate"] == 0.5
    script = tmp_path / "run.sh"
    script.write_text('OPTS="--dataset d --learning_rate 0.5"\npython -m openrlhf.cli.train_rm --pretrain m $OPTS\n')
    found = migrate("openrlhf", str(script)).changed()
    assert (found["model.path"], found["data.train"], found["optimizer.learning_rate"]) == ("m", ("d",), 0.5)


def test_keys_of_services_are_not_written():
    options = "--model_name_or_path m --dataset_name d --hub_token hf_secret"
    text = render(migrate("trl", arguments=options), "config.py")
    text += render(migrate("openrlhf", arguments="--pretrain m --dataset d --use_wandb wb_secret"), "config.py")
    assert "hub_token = (not shown)" in text
    assert "logger.wandb.key = (not shown)" in text
    assert "secret" not in text


def test_numbers_that_are_texts_or_null(tmp_path):
    file = tmp_path / "a.yaml"
    options = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}\nlearning_rate: 1e-4\n"
    file.write_text(f"{options}max_grad_norm: null\n")  # YAML reads 1e-6 as a text
    found = migrate("trl", str(file)).changed()
    assert found["optimizer.final_fraction"] == pytest.approx(0.01)
    assert found["optimizer.grad_clip"] == 0.0


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("trl", "max_steps: null", "max_steps is None; expected an integer"),
        ("trl", "learning_rate: 2024-01-01", r"learning_rate is .*; expected a number"),
        ("trl", "lr_scheduler_kwargs: '{bad'", "lr_scheduler_kwargs is '{bad'; expected an object"),
        ("nemo_aligner", "model: {data: {data_prefix: {train: [null]}}}", "data_prefix holds None"),
        ("nemo_aligner", "model: {data: {data_impl: null}}", "data_impl is None"),
        ("openrlhf", b"\xff\xfe--pretrain", "not a text file in UTF-8"),
    ],
)
def test_values_that_cannot_be_taken_over_end_in_a_message(tmp_path, source, text, message):
    file = tmp_path / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        migrate(source, str(file))
