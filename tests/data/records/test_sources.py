"""Splits of `datasets` directories, and files that are given by mistake."""

import datasets
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import find_sources


def pairs(count):
    return datasets.Dataset.from_list([{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(count)])


@pytest.fixture
def saved(tmp_path):
    """A directory of a DatasetDict with the splits `test` and `train`."""
    datasets.DatasetDict(train=pairs(20), test=pairs(4)).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def count(source):
    return len(read_comparisons(source, ReadOptions())[0])


@pytest.mark.parametrize(
    ("split", "size"), [("test", 4), ("train", 20), ("train[:10%]", 2), ("train[15:]", 5), ("train[2:4]", 2)]
)
def test_a_split_of_a_saved_dictionary_is_chosen_by_name(saved, split, size):
    assert count(f"{saved}:{split}") == size
    assert count(f"mine={saved}:{split}") == size
    comparisons, _ = read_comparisons(f"mine={saved}:{split}", ReadOptions())
    assert comparisons[0].where == f"{saved}:{split}:1"
    assert comparisons[0].subset == "mine"
    fingerprints = {find_sources(f"{saved}:{name}")[0].fingerprint() for name in (split, split, "train[:1]")}
    assert len(fingerprints) == 2


def test_a_missing_split_is_named_with_the_splits(saved, tmp_path):
    with pytest.raises(InputError, match=r"saved has the splits test, train; name one, such as .*/saved:test"):
        count(str(saved))
    with pytest.raises(
        InputError, match=r"saved:valid': there is no split 'valid'; .*/saved has the splits test, train"
    ):
        count(f"{saved}:valid")
    for slice_ in ("train[:x]", "train[100:]"):
        with pytest.raises(InputError, match=r"'train\[.*\]' is not a slice of a split"):
            count(f"{saved}:{slice_}")
    pairs(2).save_to_disk(tmp_path / "single")
    with pytest.raises(InputError, match=r"single is one dataset without splits; give .*/single$"):
        count(f"{tmp_path / 'single'}:train")
    with pytest.raises(InputError, match=r"nowhere:train': no such file"):
        count(f"{tmp_path / 'nowhere'}:train")


def test_a_split_of_a_directory_of_files_is_chosen_by_name(tmp_path):
    (tmp_path / "files").mkdir()
    pairs(3).to_parquet(tmp_path / "files" / "train.parquet")
    pairs(2).to_parquet(tmp_path / "files" / "test.parquet")
    assert count(f"{tmp_path / 'files'}:test") == 2
    with pytest.raises(InputError, match=r"has the splits test, train; name one"):
        count(tmp_path / "files")
    with pytest.raises(InputError, match=r"Unknown split .*Give it as .*files:SPLIT"):
        count(f"{tmp_path / 'files'}:valid")


@pytest.mark.parametrize("name", ["org/name", "org/name:test", "org/name:train[:10%]", "org/name:train+test"])
def test_hub_names_have_a_split(name):
    (source,) = find_sources(name)
    assert (source.hub, source.location) == (True, name)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
MISTAKES = [
    (
        "model.nemo",
        b"\0" * 512,
        "this is a NeMo model; convert it to Hugging Face format: python -m rmjax.migrate nemo_checkpoint",
    ),
    ("a.jsonl", b"\n <!DOCTYPE html><html>", "this is an HTML page; download the file itself"),
    ("a.parquet", b"\xef\xbb\xbf<html>", "this is an HTML page"),
    ("a.json", b"<!-- saved -->\n<html>", "this is an HTML page"),
    ("a.csv", b"<head><title>404</title></head>", "this is an HTML page"),
    ("a.parquet", b"<?xml version='1.0'?><Error>", "this is XML or HTML; download the file itself"),
    ("a.jsonl", b"<Error><Code>AccessDenied</Code></Error>", "this is XML or HTML; download the file itself"),
    ("a.json", LFS, "this is a git-lfs pointer"),
    ("a.parquet", LFS, "this is a git-lfs pointer"),
    ("a.csv", LFS, "this is a git-lfs pointer instead of the file; run `git lfs pull`"),
    ("a.jsonl.gz", LFS, "this is a git-lfs pointer"),
    ("model.gguf", b"GGUF\x03", "this is a GGUF model; give the Hugging Face directory"),
    ("pytorch_model.bin", b"PK\x03\x04", "this is a ZIP file"),
    ("model.bin", b"\x80\x02", "this is PyTorch weights"),
    ("model.safetensors", b"", "this is a file of weights; give the directory that it is in"),
    ("train.yaml", b"a: 1", "this is a YAML file; configurations are Python files"),
    ("train.YML", b"a: 1", "this is a YAML file"),
    ("binary.py", b"", "this is a Python file; configurations are given as --config"),
    ("data.tar.gz", b"\x1f\x8b", "this is an archive; extract it"),
    ("a.jsonl", b"\x1f\x8b", "this is compressed by gzip; add .gz to its name"),
    ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "this is compressed by zstd; decompress it"),
    ("a.json", b"PAR1", "this is a Parquet file; give it the ending .parquet"),
    ("data-00000.arrow", b"", "this is an Arrow file; give the directory that `datasets` wrote it to"),
    ("a.txt", b"text", r"expected a JSONL, Parquet or CSV file \(.jsonl"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), MISTAKES, ids=[f"{i} {case[0]}" for i, case in enumerate(MISTAKES)]
)
def test_a_file_given_by_mistake_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"data '.*{name}': {message}"):
        find_sources(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model_config.yaml", "model_weights/metadata.json"], "this is a NeMo model; convert it"),
        (["context/io.json", "weights/x"], "this is a NeMo model"),
        (["megatron_gpt.nemo"], "this is a NeMo model"),
        (["adapter_config.json", "adapter_model.safetensors"], r"this is an adapter of PEFT \(LoRA\); merge it"),
        (["config.json", "model.safetensors"], "this is a directory of a model or of a training run, not of data"),
        (["model.json", "head.json", "metrics.jsonl"], "this is a directory of a model or of a training run"),
        ([], "the directory is empty"),
    ],
)
def test_a_directory_given_by_mistake_is_named(tmp_path, files, message):
    (tmp_path / "given").mkdir()
    for file in files:
        (tmp_path / "given" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "given" / file).write_text("{}")
    with pytest.raises(InputError, match=rf"data '.*given': {message}"):
        find_sources(tmp_path / "given")


@pytest.mark.parametrize(("content", "message"), [(LFS, "a git-lfs pointer instead"), (b"<html>", "an HTML page")])
def test_a_file_of_a_directory_that_was_not_downloaded_is_named(tmp_path, content, message):
    (tmp_path / "repository" / "data").mkdir(parents=True)
    (tmp_path / "repository" / "data" / "train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(InputError, match=rf"repository/data/train-00000-of-00001\.parquet: this is {message}"):
        count(tmp_path / "repository")


def test_an_empty_name_is_refused():
    with pytest.raises(InputError, match="the name of a source is empty"):
        find_sources([""])


def test_paths_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert find_sources("~/a.jsonl")[0].location == str(tmp_path / "a.jsonl")
    assert find_sources("mine=~/*.jsonl")[0].name == "mine"
