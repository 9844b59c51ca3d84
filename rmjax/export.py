"""Exports the best checkpoint of a workdir as a serving artifact, or its adapters for the PEFT library.

python -m rmjax.export --workdir=DIR --output=DIR [--peft] [--push_to_hub=OWNER/NAME]
python -m rmjax.export --model=DIR --head_tokens=GOOD,BAD --output=DIR
"""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from rmjax.core import program, readouts
from rmjax.core.errors import InputError
from rmjax.models import hub
from rmjax.models.members import COMBINATIONS
from rmjax.models.workdir import Workdir
from rmjax.training.export import export

FLAGS = program.Flags()
_WORKDIR = FLAGS.string("workdir", "", "Workdir of a training run.")
_MODEL = FLAGS.string("model", "", "Causal language model whose head --head_tokens names, instead of --workdir.")
_OUTPUT = FLAGS.string("output", "", "Directory of the artifact; new or empty.")
_MERGE = FLAGS.list("merge", [], "Merge attributes into one reward: comma-separated attribute=weight.")
_STANDARDIZE = FLAGS.bool("standardize", False, "Standardize rewards (mean 0, std 1) over the validation data.")
_PEFT = FLAGS.bool("peft", False, "Write the adapters and the head alone, for the PEFT library.")
_COMBINATION = FLAGS.enum("combination", "", ["", *COMBINATIONS], program.COMBINATION_HELP)
_BETA = FLAGS.float("beta", None, program.BETA_HELP)
_TOKENS = FLAGS.list("head_tokens", [], "With --model: the reward is this token's logit; of two: their difference.")
_HUB = FLAGS.string("push_to_hub", "", "Upload the artifact to this repository of the hub, created private if new.")
_SEPARATOR = FLAGS.string("step_separator", "", "With --model: text after each step at which steps are judged.")


def main(_: Sequence[str]) -> None:
    """Exports --workdir, or --model with a head of --head_tokens, to --output, and uploads it to --push_to_hub."""
    if _HUB.value:
        hub.check_name(_HUB.value)  # before the export, which may be long
    _export()
    if _HUB.value:
        print(f"uploaded it to {hub.push(pathlib.Path(_OUTPUT.value), _HUB.value)}")


def _export() -> None:
    if _MODEL.value or _TOKENS.value or _SEPARATOR.value:
        _export_language_model()
        return
    if not _WORKDIR.value or not _OUTPUT.value:
        raise InputError("--workdir and --output are required")
    workdir, output = Workdir(pathlib.Path(_WORKDIR.value)), pathlib.Path(_OUTPUT.value)
    if not workdir.is_workdir:
        raise InputError(f"{workdir}: not a workdir of rmjax.train ({workdir.model_file.name} is missing)")
    options = {"merge": _MERGE.value, "standardize": _STANDARDIZE.value, "peft": _PEFT.value}
    options |= {"combination": _COMBINATION.value, "beta": _BETA.value}
    _print(export(workdir.path, output, **options))


def _export_language_model() -> None:
    if not (_MODEL.value and _TOKENS.value and _OUTPUT.value):
        raise InputError("--model, --head_tokens and --output are required to make a reward model of a language model")
    if _WORKDIR.value or _MERGE.value or _STANDARDIZE.value or _PEFT.value:
        raise InputError("--workdir, --merge, --standardize and --peft do not go with --model; remove them")
    output = pathlib.Path(_OUTPUT.value)
    _print(export(_MODEL.value, output, head_tokens=_TOKENS.value, step_separator=_SEPARATOR.value))


def _print(metadata: dict[str, Any]) -> None:
    if token := metadata.get("added_padding_token"):
        print(f"note: the tokenizer has no token to pad with; {token} was added, and a row to the embedding")
    if (readout := metadata.get("pooling", readouts.LAST_TOKEN)) != readouts.LAST_TOKEN:
        unless = "" if readouts.is_mean(readout) else ", unless each conversation ends with that token"
        print(
            f"note: the reward is read by data.readout = {readout}; classifiers of other libraries read the last "
            f"token, so that their rewards are others{unless}"
        )
    if metadata.get("transformers_class") is None:
        print(
            "note: transformers has no sequence classifier of this family, or with this head: its AutoModel loads the "
            "decoder, to which the tensors of `score` are to be applied; rmjax uses the artifact as any other"
        )
    if (combination := metadata.get("combination", "mean")) != "mean":
        print(f"note: rmjax combines the head's members by {combination}; the Hugging Face head holds their mean")
    shift = metadata["transformers_shift"]
    if any(shift):
        values = ", ".join(f"{name} {value:+.6g}" for name, value in zip(metadata["attributes"], shift, strict=True))
        print(f"note: rewards are the logits of transformers plus a shift (transformers_shift in rmjax.json): {values}")
    serve = shlex.join([f"--model={_OUTPUT.value}", "--grpc_port=8001"])
    print(f"wrote {_OUTPUT.value}; serve it with: python -m rmjax.serve {serve}")


if __name__ == "__main__":
    program.run(main, FLAGS)
