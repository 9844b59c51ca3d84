"""Flags of the programs that load reward models to score with them: rmjax.score, rmjax.evaluate and rmjax.serve."""

from typing import Any

from absl import flags

from rmjax.core import option_names, program
from rmjax.models.members import COMBINATIONS

flags.disclaim_key_flags()  # --help lists them among the flags of the program


class ModelFlags:
    """The options of loading a model, as flags of a program.

    Args:
      max_length: help of --max_length.
    """

    def __init__(self, program_flags: program.Flags, max_length: str):
        self.max_length = program_flags.integer("max_length", 0, max_length, lower_bound=0)
        self.rows_per_device = program_flags.integer(
            "rows_per_device", 0, "Rows per batch on each device; 0: chosen by platform.", lower_bound=0
        )
        self.template_date = program_flags.string("template_date", "", program.TEMPLATE_DATE_HELP)
        self.dtype = program_flags.enum("dtype", "float32", ["float32", "bfloat16"], "Data type of activations.")
        self.mesh = program_flags.string("mesh", "", program.MESH_HELP)
        self.int8 = program_flags.bool(
            "int8", False, "Store the layers' matrices as int8, with a scale for each column."
        )
        self.combination = program_flags.enum("combination", "", ["", *COMBINATIONS], program.COMBINATION_HELP)
        self.beta = program_flags.float("beta", None, program.BETA_HELP)

    def options(self) -> dict[str, Any]:
        """Returns the options of `evaluation.pipeline.load_pipeline`; its errors name the flags."""
        values = {name: holder.value for name, holder in vars(self).items()}
        return values | {"progress": True, "option": option_names.flag}
