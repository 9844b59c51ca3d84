"""Ensembles of several models: combination, standard deviation, files."""

import json

import numpy as np
import pytest

import rmjax
from rmjax.core.errors import InputError
from rmjax.training.experiment import train
from tests.training.conftest import tiny as tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two workdirs."""
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMJAX_CACHE", str(path / "cache"))
        for seed in (0, 1):
            config = tiny_config.__wrapped__()
            config.train.seed, config.train.steps = seed, 3
            train(config, path / f"run{seed}", log=lambda line: None, progress=False)
    (path / "both.json").write_text(json.dumps({"models": ["run0", "run1"]}))
    return path


def test_rewards_are_combined(made, tmp_path, run_main):
    names = [made / "run0", made / "run1"]
    each = np.stack([rmjax.load(name).score("1 + 1?", ["2", "3"]) for name in names])
    ensemble = rmjax.load(f"{names[0]},{names[1]}")
    np.testing.assert_allclose(ensemble.score("1 + 1?", ["2", "3"]), each.mean(0), atol=1e-5)
    np.testing.assert_allclose(ensemble.uncertainty("1 + 1?", ["2", "3"]), each.std(0), atol=1e-5)
    explained = ensemble.explain("1 + 1?", ["2", "3"])
    np.testing.assert_allclose(explained.reward_std[:, 0], each.std(0), atol=1e-5)
    assert f"{explained.rewards[0, 0]:.4f} ± {explained.reward_std[0, 0]:.4f}, " in explained._repr_html_()
    worst = rmjax.load(made / "both.json", combination="minimum")
    np.testing.assert_allclose(worst.score("1 + 1?", ["2", "3"]), each.min(0), atol=1e-5)
    found = ensemble.evaluate("synthetic", limit=12)
    assert all(len(line["reward_std"]) == 2 for line in found.predictions)
    assert "uncertainty/confident_right" in found.metrics

    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "responses": ["2", "3"]}) + "\n")
    flags = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    run_main("score", f"--model={made / 'both.json'}", *flags)
    line = json.loads((tmp_path / "out.jsonl").read_text())
    np.testing.assert_allclose(line["rewards"], each.mean(0), atol=1e-5)
    np.testing.assert_allclose(line["reward_std"], each.std(0), atol=1e-5)
    with pytest.raises(InputError, match="written by another run"):
        run_main("score", f"--model={names[0]}", *flags)


def test_one_head_has_no_uncertainty_and_files_are_checked(made):
    with pytest.raises(InputError, match="no standard deviation"):
        rmjax.load(made / "run0").uncertainty("a", "b")
    (made / "wrong.json").write_text("{}")
    with pytest.raises(InputError, match="models is null"):
        rmjax.load(made / "wrong.json")
