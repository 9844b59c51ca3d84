"""Upload of an artifact to the Hugging Face hub."""

import pathlib

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from rmjax.core.errors import InputError


def check_name(name: str) -> None:
    """Raises InputError if `name` is not the name of a repository, NAME or OWNER/NAME."""
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push_to_hub={name}: {error}; expected OWNER/NAME") from error


def push(directory: pathlib.Path, name: str) -> str:
    """Uploads all files of an artifact, of which README.md is the model card, and returns the repository's address.

    A repository that does not exist is created, private.

    Raises:
      InputError: the hub refuses, or cannot be reached; the artifact stays where it is.
    """
    check_name(name)
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Upload a reward model of rmjax")
    except Exception as error:  # also those of its HTTP library, which differs between versions
        raise InputError(
            f"--push_to_hub={name}: {' '.join(str(error).split())[:300]}; log in with `hf auth login` or HF_TOKEN, and "
            f"upload it with `hf upload {name} {directory}`"
        ) from error
    return str(address)
