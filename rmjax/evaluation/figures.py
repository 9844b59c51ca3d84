"""The figure of a packed row: its prefix trees and which tokens attend to which."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from rmjax.core.plotting import draw_row_svg
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Tree, packed_spec
from rmjax.models.attention.mask import Tokens, visible


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG figure, which a notebook shows."""

    svg: str = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        svg = self.svg[self.svg.index("<svg") :]
        return f'<div style="max-width: 100%; overflow-x: auto; background: #fff">{svg}</div>'

    def save(self, path: str) -> None:
        """Writes the SVG file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)


def draw_row(trees: Sequence[Tree], row_length: int, token_strings: Sequence[Sequence[str]] | None = None) -> Figure:
    """Draws a row of `row_length` T tokens that holds `trees`, and its attention mask [T, T].

    Args:
      token_strings: text of the tokens of each tree, prefix first, then its branches; None: no text.
    """
    readouts = sum(len(tree.readouts) for tree in trees)
    batch = fill_rows([trees], packed_spec(1, row_length, readouts, 0, 0))
    group, branch = batch["group"][0], batch["branch"][0]
    tokens = Tokens(*map(jnp.asarray, (group, branch, batch["position"][0], np.arange(row_length))))
    mask = np.asarray(visible(tokens, tokens))
    texts = [text for tree in token_strings or () for text in tree]
    return Figure(draw_row_svg(group, branch, mask, batch["readout_index"][0], texts))
