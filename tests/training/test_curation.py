"""Duplicates and prompts of evaluation sets are left out of the training data."""

import json

import pytest

from rmjax.core import config as configs
from rmjax.core import config_checks
from rmjax.core.errors import InputError
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.training import datasets


def write(path, prompts):
    lines = [{"prompt": f"What is {prompt} good for?", "chosen": " yes", "rejected": " no"} for prompt in prompts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def run(tmp_path):
    """Loads the data of a run with two training sources; returns the places of the comparisons, and the lines."""
    train = [write(tmp_path / "a.jsonl", "abca"), write(tmp_path / "b.jsonl", "dbe")]
    validation = write(tmp_path / "validation.jsonl", "aez")
    bench = write(tmp_path / "bench.jsonl", "ad")

    def load(**options):
        config, lines = configs.small(), []
        config.data.update(train=tuple(train), validation=(validation,), **options)
        config_checks.check(config)
        loaded = datasets.load(config, config.data, Tokenizer.load(""), lines.append, progress=False)
        places = [[dataset.where(i).rsplit("/", 1)[1] for i in range(len(dataset))] for dataset in loaded[:2]]
        return *places, "\n".join(lines).replace(f"{tmp_path}/", "")

    load.bench = bench
    return load


VALIDATION = [f"validation.jsonl:{line}" for line in (1, 2, 3)]


def test_all_is_kept_by_default(run):
    training, validation, _ = run()
    assert training == [*(f"a.jsonl:{i}" for i in (1, 2, 3, 4)), *(f"b.jsonl:{i}" for i in (1, 2, 3))]
    assert validation == VALIDATION


def test_duplicates_over_all_sources(run):
    for _ in range(2):  # tokenized, and from the cache
        training, validation, lines = run(duplicates="drop")
        assert training == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1", "b.jsonl:3"]
        assert validation == VALIDATION
        assert lines.count("1 skipped (duplicate of another comparison)") == 2


def test_prompts_of_an_evaluation_set(run):
    training, validation, lines = run(exclude=(run.bench,))
    assert training == ["a.jsonl:2", "a.jsonl:3", "b.jsonl:2", "b.jsonl:3"]
    assert validation == VALIDATION
    assert "train: a.jsonl: 2 comparisons of 4 records (pairs); 2 skipped (prompt in bench.jsonl)" in lines
    assert "train: b.jsonl: 2 comparisons of 3 records (pairs); 1 skipped (prompt in bench.jsonl)" in lines
    assert "validation: validation.jsonl: 3 comparisons of 3 records (pairs); nothing dropped" in lines


def test_a_second_source_is_tokenized_alone(run, tmp_path):
    """The first source comes from the cache; its duplicates in the second one are found all the same."""
    run(duplicates="drop")
    write(tmp_path / "b.jsonl", "xyb")
    training, _, lines = run(duplicates="drop")
    assert training == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1", "b.jsonl:2"]
    assert "a.jsonl: 3 comparisons of 4 records (pairs, tokens from cache)" in lines
    assert "b.jsonl: 2 comparisons of 3 records (pairs); 1 skipped" in lines


def test_wrong_values_are_named(run, tmp_path):
    with pytest.raises(InputError, match=r"data '.*missing\.jsonl': no such file"):
        run(exclude=(str(tmp_path / "missing.jsonl"),))
    with pytest.raises(InputError, match=r"config\.data\.duplicates is 'yes'; choose one of keep, drop, drop_near"):
        run(duplicates="yes")
    with pytest.raises(InputError, match=r"config\.data\.similarity is 0\.2; expected 0\.5 to 1"):
        run(similarity=0.2)
    with pytest.raises(
        InputError, match=r"no usable comparison in 7 records: 2 records skipped .*its prompt is that of"
    ):
        run(exclude=(*run.bench.split(), write(tmp_path / "all.jsonl", "abcde")))
