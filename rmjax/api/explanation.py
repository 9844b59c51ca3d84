"""Tokens, branches and readouts of a scored prompt."""

import dataclasses
import html
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """The tokens of a prompt and its responses, and the rewards at the readouts; a notebook shows it with colors.

    Attributes:
      tokens: (text, branch, whether a reward is read there) of each token; branch 0 is the shared prefix, which is
        computed once, and branch k + 1 belongs to response k.
      rewards: float32 [R, A].
      reward_std: their standard deviations, float32 [R, A]; None if the model has none.
    """

    tokens: list[tuple[str, int, bool]]
    rewards: np.ndarray
    text: str
    reward_std: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"{self.text}\n{self._rewards()}"

    def _rewards(self) -> str:
        """Returns the rewards as text, of several attributes separated by slashes, each with its standard deviation."""
        cells = [[f"{value:.4f}" for value in row] for row in self.rewards]
        if self.reward_std is not None:
            both = zip(cells, self.reward_std, strict=True)
            cells = [[f"{cell} ± {std:.4f}" for cell, std in zip(*pair, strict=True)] for pair in both]
        return f"rewards: {', '.join(map(' / '.join, cells))}"

    def _repr_html_(self) -> str:
        rows = []
        for branch, group in itertools.groupby(self.tokens, key=lambda token: token[1]):
            styles = ("background: #8aa1b840", "background: #2f6f9f; color: #fff")  # of other tokens, of readouts
            spans = [
                f'<span style="{styles[readout]}; margin-right: 1px">{html.escape(text)}</span>'
                for text, _, readout in group
            ]
            title = "prompt" if branch == 0 else f"response {branch - 1}"
            cell = '<td style="text-align: left; white-space: pre-wrap">'
            rows.append(f"<tr><td>{title}</td>{cell}{''.join(spans)}</td></tr>")
        return f"<table>{''.join(rows)}</table><p>{self._rewards()}</p>"
