"""The configuration: its reference page, checks, and the JSON file of a run."""

import re

import ml_collections
import pytest

from rmjax.core import config as configs
from rmjax.core import config_checks
from rmjax.core.config_reference import reference
from rmjax.core.errors import InputError
from tests.conftest import ROOT


def test_the_reference_describes_every_key():
    rows = re.findall(r"^\| `(\S+)` \| `(.+)` \| (.+) \|$", reference(), re.MULTILINE)
    values = dict(configs.leaves(configs.default()))
    assert sorted(key for key, _, _ in rows) == sorted(values)
    for key, default, description in rows:
        assert eval(default, {}) == values[key], key
        assert len(description) >= 10, key


def test_the_committed_reference_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), (
        "run python -m rmjax.core.config_reference > docs/configuration.md"
    )


def without_comment():
    config = ml_collections.ConfigDict()
    config.name = "run"  # name of the run
    config.seed = 0
    return config


def in_another_form():
    config = ml_collections.ConfigDict()
    config.name = "run"  # name of the run
    config.update(seed=0)
    return config


@pytest.mark.parametrize(
    ("declaration", "message"),
    [(without_comment, r"config\.seed has no comment"), (in_another_form, r"config\.seed is not declared as")],
)
def test_a_key_without_a_description_is_an_error(declaration, message):
    with pytest.raises(ValueError, match=message):
        reference(declaration)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.num_layers", 0, r"config\.model\.num_layers is 0; expected at least 1"),
        ("optimizer.weight_decay", -0.1, r"config\.optimizer\.weight_decay is -0\.1; expected at least 0"),
        ("objective.label_smoothing", 0.5, r"label_smoothing is 0\.5; expected below 0\.5"),
        ("model.remat", "some", r"config\.model\.remat is 'some'; choose one of none, small, layer"),
        ("data.ties", "keep", r"config\.data\.ties is 'keep'; choose one of drop, half"),
        (
            "optimizer.schedule",
            "step",
            r"config\.optimizer\.schedule is 'step'; choose one of constant, linear, cosine",
        ),
        ("data.weights", ("x",), r"config\.data\.weights holds 'x'; expected numbers"),
        ("data.train", (1,), r"config\.data\.train holds 1; expected texts"),
        ("train.steps", 0, r"config\.train\.steps and config\.train\.epochs are 0; set one of them, or both"),
    ],
)
def test_invalid_values_are_named(key, value, message):
    config = configs.default()
    config.train.steps = 1
    config_checks.check(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        config_checks.check(config)


def test_steps_and_epochs_may_both_be_set():
    config = configs.default()
    config.train.steps, config.train.epochs = 3, 1.0
    config_checks.check(config)


def test_required_keys_are_named_with_the_flags_that_set_them():
    config = configs.fine_tuning()
    config.data.train = ("train.jsonl",)
    message = (
        r"^config\.data\.validation, config\.model\.path: required by this configuration and not set; "
        r"on the command line: --config\.data\.validation=FILE --config\.model\.path=DIR"
    )
    with pytest.raises(InputError, match=message):
        config_checks.check(config)
    config.data.validation, config.model.path = ("test.jsonl",), "org/name"
    config_checks.check(config)


def test_arguments_of_configuration_files_are_checked():
    configs.check_argument("")
    configs.check_argument("pretrained", "pretrained")
    with pytest.raises(InputError, match=r"unknown argument 'pretraind' after the colon; expected pretrained, or none"):
        configs.check_argument("pretraind", "pretrained")
    with pytest.raises(InputError, match=r"unknown argument 'x' after the colon; this configuration takes none"):
        configs.check_argument("x")


def test_a_saved_configuration_is_read_back(tmp_path):
    config = configs.fine_tuning()
    configs.save(config, tmp_path / "config.json")
    assert dict(configs.leaves(configs.load(tmp_path / "config.json"))) == dict(configs.leaves(config))
    (tmp_path / "config.json").write_text('{"model": {"unknown": 1}}')
    with pytest.raises(InputError, match=r"config\.json: not a configuration of this version"):
        configs.load(tmp_path / "config.json")


def test_only_layout_and_logging_may_change_on_resume(tmp_path):
    configs.save(configs.small(), tmp_path / "config.json")
    config = configs.small()
    config.mesh.fsdp = 2
    config.train.rows_per_device = 1
    config.evaluation.every = 5
    config_checks.check_same_run(config, tmp_path / "config.json")
    config.train.seed = 1
    with pytest.raises(InputError, match=r"another configuration \(train\.seed: 0 there, 1 here\)"):
        config_checks.check_same_run(config, tmp_path / "config.json")


@pytest.mark.parametrize(("best", "score"), [("", 0.75), ("loss", -0.5), ("mse/helpfulness", -2.0), ("spearman", 0.25)])
def test_the_selection_score_is_higher_for_better_checkpoints(best, score):
    metrics = {"loss": 0.5, "accuracy": 0.75, "spearman": 0.25, "mse/helpfulness": 2.0}
    assert configs.selection_score(metrics, best) == score
    with pytest.raises(InputError, match=r"checkpoint\.best is 'auc'; choose one of accuracy, loss"):
        configs.selection_score(metrics, "auc")
