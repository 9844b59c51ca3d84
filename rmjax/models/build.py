"""From a PATH (artifact, Hugging Face directory, workdir) to a model and its parameters on a mesh."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.mesh import state_shardings
from rmjax.models import artifact, huggingface
from rmjax.models.config import DecoderConfig, HeadConfig, from_hugging_face, read_json
from rmjax.models.decoder import Params, RewardModel

MODEL_FILE = "model.json"  # in a workdir: the decoder's constants
HEAD_FILE = "head.json"  # in a workdir: the head's attributes and what is done with them
TOKENIZER_DIRECTORY = "tokenizer"  # in a workdir
# What of config.data decides how records are read, and goes with the model wherever it is used.
READING = ("strings", "step_separator", "step_labels", "ties", "missing_label", "preference_label")
_ONE_REWARD = HeadConfig()


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A reward model with its parameters.

    Attributes:
      directory: where the tokenizer's files lie.
      max_length: the longest conversation it was trained on, in tokens.
      facts: rmjax.json, or what of it a workdir knows.
    """

    model: RewardModel
    params: Params
    directory: pathlib.Path
    max_length: int
    facts: dict[str, Any]


def resolve(path: str) -> pathlib.Path:
    """Returns the local directory of a path or hub name.

    Raises:
      InputError: neither a directory nor a name that the hub client can fetch.
    """
    directory = pathlib.Path(path).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"model {path!r}: no such directory; give a Hugging Face directory, an artifact or a workdir")
    import huggingface_hub  # slow to import, and needed for hub names alone

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(path))
    except Exception as error:  # the client raises whatever its transport raises
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model {path!r}: no such directory, and the hub gave none ({reason})") from error


def tokenizer_directory(path: str) -> str:
    """Returns where the tokenizer of a PATH lies."""
    directory = resolve(path)
    return str(directory / TOKENIZER_DIRECTORY if is_workdir(directory) else directory)


def reading(path: str) -> tuple[dict[str, Any], int]:
    """Returns how the model of a PATH read its data, and its longest conversation; ({}, 0) where that is not known."""
    directory = resolve(path)
    if is_workdir(directory):
        return _reading(configs.load(directory / "config.json"))
    facts = artifact.read_facts(directory)
    return facts.get("reading", {}), facts.get("max_length", 0)


def _reading(config: ml_collections.ConfigDict) -> tuple[dict[str, Any], int]:
    return {name: config.data[name] for name in READING}, config.data.max_length


def is_workdir(directory: pathlib.Path) -> bool:
    """Returns whether a directory is a training run's workdir."""
    return (directory / MODEL_FILE).exists()


def make_model(config: ml_collections.ConfigDict, vocab_size: int, head: HeadConfig = _ONE_REWARD) -> RewardModel:
    """Returns the model of `config.model`: from its path's config.json, or random of the sizes given there."""
    options = {key: getattr(config, key) for key in ("dtype", "param_dtype", "attention", "remat", "scan_layers")}
    head = dataclasses.replace(head, init=config.head_init)
    if config.path:
        directory = resolve(config.path)
        decoder = read_decoder(directory) if is_workdir(directory) else from_hugging_face(directory / "config.json")
        return RewardModel(decoder, head, **options)
    decoder = DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_heads,
        norm_eps=1e-5,
        rope_theta=config.rope_theta,
        rope_scaling=None,
        attention_bias=False,
        mlp_bias=False,
        max_positions=1 << 20,
        # 1 / sqrt(D) keeps the scale of what passes through at any width; 0.02 is right near D = 2,500 alone.
        initializer_range=config.hidden_size**-0.5,
    )
    return RewardModel(decoder, head, **options)


def initial_params(config: ml_collections.ConfigDict, model: RewardModel, mesh: Mesh, key: jax.Array) -> Params:
    """Returns the parameters that training starts from, each made where it belongs.

    1. pretrained, if `config.model.path` is set, with the head found there or else a fresh one;
    2. random.
    """
    shardings = state_shardings(mesh, jax.eval_shape(model.init, key))
    if not config.path:
        return jax.jit(model.init, out_shardings=shardings)(key)
    directory = resolve(config.path)
    workdir = is_workdir(directory)
    facts = read_json(directory / HEAD_FILE) if workdir else artifact.read_facts(directory)
    if facts:
        _check_head(directory, HeadConfig.from_facts(facts), model.head)
    if workdir:
        return restore_params(directory, model, mesh)
    shape = (model.decoder.hidden_size, len(model.head.attributes))
    fresh = model.head.init * jax.random.normal(key, shape, "float32")
    return huggingface.load(directory, model, shardings, fresh_head=fresh)


def _check_head(directory: pathlib.Path, found: HeadConfig, wanted: HeadConfig) -> None:
    """Raises InputError if a trained head means something else than the one that it would be taken for."""
    same_names = len(wanted.attributes) == 1 == len(found.attributes) or found.attributes == wanted.attributes
    if not same_names or (found.scale, found.shift) != (wanted.scale, wanted.shift):
        raise InputError(f"{directory}: its head gives {', '.join(found.attributes)} with scale {list(found.scale)}, "
                         f"shift {list(found.shift)}; this run's would be {', '.join(wanted.attributes)}, "
                         f"{list(wanted.scale)}, {list(wanted.shift)}: start from a model without a head")  # fmt: skip


def load_model(path: str, *, mesh: Mesh, dtype: str = "float32", attention: str = "auto") -> LoadedModel:
    """Loads a trained reward model: an artifact, a Hugging Face classifier, or a workdir's best checkpoint.

    Raises:
      InputError: nothing usable is there, a file is damaged, or there is no reward head.
    """
    directory = resolve(path)
    if is_workdir(directory):
        config = configs.load(directory / "config.json")
        facts = workdir_facts(directory)
        head = HeadConfig.from_facts(facts)
        model = RewardModel(read_decoder(directory), head, dtype, config.model.param_dtype, attention)
        params = restore_params(directory, model, mesh)
        return LoadedModel(model, params, directory / TOKENIZER_DIRECTORY, facts["max_length"], facts)
    facts = artifact.read_facts(directory)
    decoder = from_hugging_face(directory / "config.json")
    head = HeadConfig.from_facts(facts or {"attributes": _labels(directory)})
    model = RewardModel(decoder, head, dtype, "float32", attention)
    shardings = state_shardings(mesh, jax.eval_shape(model.init, jax.random.key(0)))
    params = huggingface.load(directory, model, shardings, fresh_head=None)
    return LoadedModel(model, params, directory, facts.get("max_length", decoder.max_positions), facts)


def _labels(directory: pathlib.Path) -> list[str]:
    labels = read_json(directory / "config.json").get("id2label") or {"0": "reward"}
    return [labels[key] for key in sorted(labels, key=int)]


def read_decoder(workdir: pathlib.Path) -> DecoderConfig:
    """Reads the decoder's constants that `write_decoder` left in a workdir, as config.json of the Llama family."""
    return from_hugging_face(workdir / MODEL_FILE)


def best_step(workdir: pathlib.Path, best: str) -> int:
    """Returns the step of the workdir's best checkpoint by the validation metric `best`, else its latest.

    Raises:
      InputError: there is no checkpoint.
    """
    steps = sorted(int(child.name) for child in (workdir / "checkpoints").glob("*") if child.name.isdigit())
    if not steps:
        raise InputError(f"{workdir}: no checkpoint is there yet; train further")
    found = {}
    for step in steps:
        path = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
        if path.exists():
            found[step] = configs.selection(json.loads(path.read_text()), best)
    return max(found, key=lambda step: (found[step], -step)) if found else steps[-1]


def workdir_facts(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what a workdir knows for rmjax.json: source step, validation metrics, max_length, …"""
    config = configs.load(workdir / "config.json")
    step = best_step(workdir, config.checkpoint.best)
    path = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    reading, max_length = _reading(config)
    return read_json(workdir / HEAD_FILE) | {
        "source": config.model.path or "random initialisation",
        "source_step": step,
        "validation": metrics,
        "validation_data": list(config.data.validation),
        # Of the best checkpoint's rewards on the validation data; they are stored, not applied.
        "reward_mean": metrics.get("reward_mean"),
        "reward_std": metrics.get("reward_std"),
        "max_length": max_length,
        "reading": reading,
        "dtype": config.model.dtype,
    }


def restore_params(workdir: pathlib.Path, model: RewardModel, mesh: Mesh) -> Params:
    """Returns the parameters of the workdir's best checkpoint, without the optimizer's state.

    Raises:
      InputError: there is no checkpoint, or it is damaged.
    """
    config = configs.load(workdir / "config.json")
    path = workdir / "checkpoints" / str(best_step(workdir, config.checkpoint.best)) / "state"
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        state_shardings(mesh, abstract),
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            restore = ocp.args.PyTreeRestore(
                {"params": target},
                restore_args=ocp.checkpoint_utils.construct_restore_args({"params": target}),
                partial_restore=True,
            )
            return checkpointer.restore(path.absolute(), args=restore)["params"]
    except Exception as error:  # Orbax and TensorStore raise whatever they find
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"checkpoint {path} cannot be read ({type(error).__name__}: {reason})") from error
