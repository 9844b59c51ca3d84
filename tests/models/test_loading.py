"""Errors for a PATH that is not a model."""

import pytest

from rmjax.core.errors import InputError
from rmjax.models import paths


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (["llama.nemo"], "llama.nemo", "this is a NeMo model; convert it to Hugging Face format"),
        (["llama.nemo"], "", "this is a NeMo model; convert it"),
        (["model_config.yaml", "model_weights"], "", "this is a NeMo model; convert it"),
        (["llama.gguf"], "llama.gguf", "this is a GGUF model; give the Hugging Face directory with safetensors"),
        (["config.json", "model.safetensors"], "model.safetensors", "this is a file of weights; give the directory"),
        (["pytorch_model.bin"], "pytorch_model.bin", "this is PyTorch weights"),
        (["llama.yaml"], "llama.yaml", "this is a YAML file"),
        (["notes.txt"], "notes.txt", "no such directory; give a Hugging Face directory"),
    ],
)
def test_a_file_or_directory_given_by_mistake_is_named(tmp_path, files, given, message):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=f"model '.*': {message}"):
        paths.resolve_path(str(tmp_path / given))


def test_a_model_directory_may_hold_other_formats_too(tmp_path):
    for file in ("config.json", "llama.nemo", "adapter_config.json"):
        (tmp_path / file).touch()
    assert paths.resolve_path(str(tmp_path)) == tmp_path
