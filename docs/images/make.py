"""Draw the figures of README and documentation: python docs/images/make.py."""

import pathlib

import numpy as np

from rmjax.data.tokens.trees import make_tree
from rmjax.evaluation.figures import draw_row

HERE = pathlib.Path(__file__).parent
COMPARISONS = [
    ("<user> Is water wet ? <bot>", ["Yes , it is .", "No . Water makes things wet ."]),
    ("<user> 2 + 2 ? <bot>", ["4", "It is four .", "5 ."]),
]


def main() -> None:
    """Draws a packed row that holds two comparisons of whole words."""
    vocabulary: dict[str, int] = {}
    encode = lambda text: np.array([vocabulary.setdefault(word, len(vocabulary)) for word in text.split()], np.int32)
    trees = [make_tree([encode(f"{prompt} {r}") for r in responses]) for prompt, responses in COMPARISONS]
    words = list(vocabulary)
    texts = [[words[i] for part in (tree.prefix, *tree.branches) for i in part] for tree in trees]
    draw_row(trees, sum(tree.length for tree in trees) + 4, texts).save(str(HERE / "packed_row.svg"))


if __name__ == "__main__":
    main()
