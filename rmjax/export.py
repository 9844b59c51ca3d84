"""Exports a workdir's best checkpoint as a serving artifact.

    python -m rmjax.export --workdir=DIR --output=DIR
"""

import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import jax
from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.tokenizer import Tokenizer
from rmjax.models import artifact, build

_WORKDIR = flags.DEFINE_string("workdir", "", "A training run's directory.")
_OUTPUT = flags.DEFINE_string("output", "", "The artifact's directory; must not exist, or be empty.")


def main(_: Sequence[str]) -> None:
    """Exports as the flags say."""
    if not _WORKDIR.value or not _OUTPUT.value:
        raise InputError("--workdir and --output are both needed")
    export(pathlib.Path(_WORKDIR.value), pathlib.Path(_OUTPUT.value))
    print(f"wrote {_OUTPUT.value}; serve it with: python -m rmjax.serve --model={_OUTPUT.value} --grpc_port=8001")


def export(workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the artifact of the workdir's best checkpoint; `output` appears only when it is whole."""
    if not build.is_workdir(workdir):
        raise InputError(f"{workdir}: not a workdir of rmjax.train ({build.MODEL_FILE} is not there)")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty directory; choose another --output or remove it")
    mesh = make_mesh()
    output.parent.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        made = pathlib.Path(temporary) / "artifact"
        made.mkdir()
        loaded = build.load_model(str(workdir), mesh=mesh)
        tokenizer = Tokenizer.load(str(loaded.directory)).with_separate_pad()
        tokenizer.save(made)
        artifact.write(made, loaded.model, loaded.params, tokenizer.base.pad_token_id, loaded.facts)
        if output.exists():
            output.rmdir()
        shutil.move(made, output)


if __name__ == "__main__":
    program.run(main)
