"""Configuration files: their errors, overrides, and the files of the repository."""

import pytest

from rmjax.core import config as configs
from rmjax.core import config_checks, config_file
from rmjax.core.errors import InputError
from tests.conftest import ROOT

IMPORT = "from rmjax.core import config as configs\n\n\n"


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("def get_config(:\n    pass\n", "", "line 1: SyntaxError: invalid syntax"),
        ("x = 1\nimport no_such_module\n", "", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n", "", "defines no function get_config()"),
        ("def get_config():\n    return None\n", "", "get_config() returned NoneType; expected the changed"),
        ("def get_config():\n    return {}['key']\n", "", "line 2: KeyError: key"),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", "", "line 2: ValueError: two lines"),
        (IMPORT + "def get_config():\n    return configs.small()\n", ":x", "get_config() takes no argument; use "),
        (IMPORT + "def get_config(arg):\n    return configs.small()\n", "", "get_config() needs an argument; use "),
        (
            IMPORT + "def get_config(arg):\n    configs.check_argument(arg, 'a')\n",
            ":b",
            "unknown argument 'b' after the",
        ),
        (
            IMPORT + "def get_config():\n    config = configs.small()\n    config.train.stepz = 1\n",
            "",
            'line 6: AttributeError: Key "stepz" does not exist',
        ),
    ],
)
def test_the_error_of_a_configuration_file_is_one_line(tmp_path, text, argument, message):
    path = tmp_path / "file.py"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        config_file.load(f"{path}{argument}")
    assert str(error.value).startswith(f"--config={path}{argument}: {message}")
    assert "\n" not in str(error.value)
    assert "\\n" not in str(error.value)


def test_other_files_than_python_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  path: x\n")
    with pytest.raises(InputError, match=r"config\.yaml: not a Python file; expected one that defines get_config\(\)"):
        config_file.load(str(path))


def test_the_configuration_is_locked_and_takes_the_argument(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        IMPORT
        + "def get_config(name='none'):\n    config = configs.small()\n    config.name = name\n    return config\n"
    )
    assert config_file.load(str(path)).name == "none"
    config = config_file.load(f"{path}:given")
    assert (config.name, config.is_locked) == ("given", True)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "train.global_batch_size",
            "--config.train.global_batch_size: no such key; nearest: train.batch_size, evaluation.batch_size; the keys "
            "of train: batch_size, cache_features, epochs, log_every, loggers, profile, rows_per_device, seed, "
            "skip_non_finite, steps",
        ),
        (
            "trainn.steps",
            "--config.trainn.steps: no such key; nearest: train.steps; the sections and keys: checkpoint, ",
        ),
        ("train", "--config.train: train is a section; set one of its keys: batch_size, "),
        ("train.steps.x", "--config.train.steps.x: no such key; "),
        ("xyz", "--config.xyz: no such key; the sections and keys: checkpoint, data, "),
    ],
)
def test_unknown_overrides_name_the_nearest_keys(key, message):
    with pytest.raises(InputError) as error:
        config_file.check_override(configs.default(), key)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_configuration_files_refuse_unknown_arguments_and_detect_the_format_of_data(path):
    with pytest.raises(InputError, match="unknown argument 'pretraind'"):
        config_file.load(f"{path}:pretraind")
    assert config_file.load(str(path)).data.format == "auto"


@pytest.mark.parametrize("name", ["smollm2", "kwise:pretrained", "regression:pretrained", "process:pretrained"])
def test_configurations_of_pretrained_models_require_path_and_data(name):
    file, _, argument = name.partition(":")
    config = config_file.load(f"{ROOT}/configs/{file}.py{argument and ':'}{argument}")
    with pytest.raises(
        InputError, match=r"config\.data\.train, config\.data\.validation, config\.model\.path: required"
    ):
        config_checks.check(config)


def test_the_files_of_the_current_directory_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file.describe_files() == ""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.py").write_text('"""First line.\n\nMore."""\n')
    (tmp_path / "configs" / "broken.py").write_text("def")
    assert config_file.describe_files().splitlines() == [
        "Configuration files here:",
        "  configs/a.py       First line.",
        "  configs/broken.py  (not a valid Python file)",
    ]
