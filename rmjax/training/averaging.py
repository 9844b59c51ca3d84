"""The weight average of reward models of one architecture, streamed tensor by tensor.

Source: Ramé et al. 2024, "WARM: on the benefits of weight averaged reward models" (arXiv 2401.12187).
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rmjax.core import locks, os_errors, safetensors
from rmjax.core.errors import InputError
from rmjax.core.readouts import LAST_TOKEN, is_mean
from rmjax.core.safetensors import TensorDirectory
from rmjax.data.tokens.tokenizer import ADDED_PAD, Tokenizer
from rmjax.models import artifact, correction, heads, paths
from rmjax.models.architecture import DecoderConfig
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES, read_config
from rmjax.models.weights import named_tensors
from rmjax.models.workdir import Workdir
from rmjax.training.export import output_directory

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Of rmjax.json: what was measured of one member, which the average does not have.
_OF_ONE = ("source", "source_step", "validation", "validation_data", "reward_mean", "reward_std", "averaged", "merged")


@dataclasses.dataclass(frozen=True)
class _Member:
    """A reward model whose tensors have not been read, except those of its head, which has no scale."""

    path: str
    family: str
    decoder: DecoderConfig
    files: TensorDirectory
    head: heads.Head
    metadata: dict[str, Any]  # contents of rmjax.json; {} of another Hugging Face directory
    tokenizer: Tokenizer
    data_options: dict[str, Any]
    max_length: int  # of a conversation; 0: not stored

    @property
    def names(self) -> dict[str, str]:
        """{name with the family's prefix: name in the files} of the tensors of the decoder."""
        family = FAMILIES[self.family]
        used = (name for name in self.files.shapes if name not in self.head.tensors)
        used = (name for name in used if not re.fullmatch(family.unused_tensors, name))
        return {re.sub(f"^{family.prefix}", family.base, name): name for name in used}


def average(
    models: Sequence[str | pathlib.Path], output: str | pathlib.Path, weights: Sequence[float] = ()
) -> dict[str, Any]:
    """Writes the artifact with the parameters sum_m w_m θ_m and returns the contents of its rmjax.json.

    Each tensor keeps its dtype; the sum is θ_1 + sum_m w_m (θ_m - θ_1) in float64, so that the average of a model with
    itself is bit for bit that model. Heads are averaged as rmjax applies them, with their scale and shift, in float32.
    At most one shard of the output is in memory. `output` appears only when it is complete.

    Args:
      models: two or more artifacts, or Hugging Face directories with a reward head.
      weights: w, one for each model, positive, divided by their sum; (): equal ones.

    Raises:
      InputError: a model cannot be read; the models differ in architecture, tokenizer, chat template, data options,
        head or dtypes; `output` is in use; a weight is not positive; or the average is not finite.
    """
    w = _weights(models, weights)
    output = pathlib.Path(output)
    with (
        locks.hold(output, "--output", directory=False),
        os_errors.reported(output),
        output_directory(output) as partial,
    ):
        members = [_open(str(path)) for path in models]
        for member in members[1:]:
            _check_same(members[0], member)
        first = members[0]
        padded = first.tokenizer.with_separate_pad()
        if padded.base.pad_token_id >= first.decoder.vocab_size:
            raise InputError(
                f"{first.path}: its tokenizer has no token to pad with ({ADDED_PAD} would be added, beyond the "
                "embedding); export each model first: rmjax.load(PATH).export(DIR)"
            )
        padded.save(partial)
        model = _averaged_model(members, w)
        artifact.write_config(partial, model, padded.base.pad_token_id)
        params = {"head": _mean_tree([member.head.params for member in members], w)}
        safetensors.write(partial, _tensors(members, *artifact.write_members(partial, model, params), w))
        return artifact.write_metadata(partial, model, _metadata(members, w))


def _weights(models: Sequence[str | pathlib.Path], given: Sequence[float]) -> np.ndarray:
    """Returns weights that sum to 1, float64 [M]."""
    if len(models) < 2:
        raise InputError(f"there is {len(models)} model to average; expected two or more")
    if given and len(given) != len(models):
        raise InputError(f"weights has {len(given)} entries; expected one for each of the {len(models)} models")
    w = np.asarray(given or [1.0] * len(models), np.float64)
    if not (np.isfinite(w).all() and (w > 0).all()):
        raise InputError(f"weights is {list(given)}; expected positive numbers")
    return w / w.sum()


def _open(path: str) -> _Member:
    directory = paths.resolve_path(path)
    if Workdir(directory).is_workdir:
        raise InputError(f"{path}: is a workdir; export its best checkpoint first: python -m rmjax.export")
    metadata = artifact.read_metadata(directory)
    family, decoder = read_config(paths.config_file(directory))
    files = paths.tensors(directory)
    head = heads.read(files, decoder, metadata)
    if head is None:
        raise InputError(f"{path}: there is no reward head; expected an artifact or a model with a reward head")
    if metadata.get(correction.KEY) or head.config.laplace:
        what = "a correction" if metadata.get(correction.KEY) else "a Laplace factor"
        raise InputError(f"{path}: has {what} of its own (rmjax.calibrate); average before calibrating")
    if scale := head.config.scale:
        columns = np.tile(np.asarray(scale, np.float32), head.config.members)
        config = dataclasses.replace(head.config, scale=())
        head = dataclasses.replace(head, config=config, kernel=head.kernel * columns)
    tokenizer = Tokenizer.load(
        paths.tokenizer_directory(path), metadata.get("template_date") or "", paths.readout(path)
    )
    return _Member(path, family, decoder, files, head, metadata, tokenizer, *paths.data_options(path))


def _check_same(one: _Member, other: _Member) -> None:
    """Raises InputError that names the first difference of two models."""
    setup = "average models of one architecture and one training setup"
    retrain = "train them with the same tokenizer and data options"

    def check(what: str, a: Any, b: Any, fix: str = setup) -> None:
        if a != b:
            shown = f": {a!r} and {b!r}" if len(f"{a}{b}") < 200 else ""
            raise InputError(f"{one.path} and {other.path} differ in {what}{shown}; {fix}")

    check("the model family (config.json's model_type)", one.family, other.family)
    for name in (field.name for field in dataclasses.fields(DecoderConfig)):
        check(f"the architecture's {name}", getattr(one.decoder, name), getattr(other.decoder, name))
    a, b = one.tokenizer, other.tokenizer
    check("the tokenizer", a.base.backend_tokenizer.to_str(), b.base.backend_tokenizer.to_str(), retrain)
    check("the special tokens", str(a.base.special_tokens_map), str(b.base.special_tokens_map), retrain)
    check("the chat template", a.base.chat_template, b.base.chat_template, retrain)
    if a.writes_date:
        check("the chat template's date", a.date, b.date, retrain)
    check("where rewards are read (data.readout)", a.readout, b.readout, retrain)
    for key in sorted(one.data_options.keys() & other.data_options.keys()):  # other directories store none, or a part
        check(f"the data option {key}", one.data_options[key], other.data_options[key], retrain)
    for name in ("attributes", "hidden", "merge_weights", "members", "combination", "beta"):
        check(f"the reward head's {name}", getattr(one.head.config, name), getattr(other.head.config, name))
    if missing := one.names.keys() ^ other.names.keys():
        raise InputError(f"{one.path} and {other.path} differ: only one has the tensor {min(missing)!r}; {setup}")
    convert = "convert one of them, since an average keeps its members' dtype"
    for name, path in one.names.items():
        second = other.names[name]
        check(f"the shape of {name!r}", one.files.shapes[path], other.files.shapes[second])
        check(f"the dtype of {name!r}", one.files.dtypes[path], other.files.dtypes[second], convert)


def _averaged_model(members: Sequence[_Member], w: np.ndarray) -> RewardModel:
    """Returns the model of the average, whose head has the average of the shifts and no scale."""
    first = members[0]
    head, count = first.head.config, len(first.head.config.attributes)
    shifts = [np.asarray(member.head.config.shift or (0.0,) * count, np.float64) for member in members]
    shift = _mean(shifts, w)
    head = dataclasses.replace(head, shift=tuple(shift.tolist()) if shift.any() else ())
    dtypes = [_DTYPES.get(first.files.dtypes[name], "float32") for name in first.names.values()]
    most = max(set(dtypes), key=dtypes.count)
    mean = is_mean(first.tokenizer.readout)
    return RewardModel(first.decoder, head, param_dtype=most, family=first.family, mean_readout=mean)


def _tensors(
    members: Sequence[_Member], model: RewardModel, params: Params, w: np.ndarray
) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
    """Yields (name, function that returns the averaged array, size in bytes) as `safetensors.write` takes them."""
    first = members[0]
    sizes = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
    for name, path in first.names.items():

        def make(name: str = name) -> np.ndarray:
            arrays = [member.files.read(member.names[name]) for member in members]
            return _finite(name, _mean(arrays, w))

        yield name, make, math.prod(first.files.shapes[path]) * sizes.get(first.files.dtypes[path], 4)
    yield from named_tensors(model, params)


def _mean_tree(trees: Sequence[Any], w: np.ndarray) -> Any:
    if isinstance(trees[0], dict):
        return {name: _mean_tree([tree[name] for tree in trees], w) for name in trees[0]}
    return _finite("the reward head", _mean(trees, w))


def _mean(arrays: Sequence[np.ndarray], w: np.ndarray) -> np.ndarray:
    """Returns x_1 + sum_m w_m (x_m - x_1) in the dtype of the first array; exactly x_1 if all are equal."""
    first = arrays[0].astype(np.float64)
    total = first.copy()
    for weight, array in zip(w[1:], arrays[1:], strict=True):
        total += weight * (array.astype(np.float64) - first)
    return total.astype(arrays[0].dtype)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array.astype(np.float32)).all():
        raise InputError(f"the average of {name} is not finite; check the members' weights")
    return array


def _metadata(members: Sequence[_Member], w: np.ndarray) -> dict[str, Any]:
    """Returns the contents of rmjax.json besides the head: those of the first member without its own measurements."""
    first = members[0]
    kept = {name: value for name, value in first.metadata.items() if name not in (*_OF_ONE, "sha256")}
    lengths = [member.max_length for member in members if member.max_length]
    kept["max_length"] = min(lengths) if lengths else first.decoder.max_positions
    averaged = [
        {
            "path": member.path,
            "weight": float(weight),
            "source_step": member.metadata.get("source_step"),
            "sha256": {
                name: digest
                for name, digest in member.metadata.get("sha256", {}).items()
                if name.endswith(".safetensors")
            },
        }
        for member, weight in zip(members, w, strict=True)
    ]
    options = {"data_options": first.data_options, "pooling": first.tokenizer.readout or LAST_TOKEN}
    return kept | options | {"averaged": averaged}
