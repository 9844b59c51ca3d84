"""From a workdir to the serving artifact."""

import pathlib
import shutil
import tempfile

import jax

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.tokenizer import Tokenizer
from rmjax.models import artifact, build


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
