"""Numbers of parameters, for plans."""

from rmjax.core import pytree
from rmjax.models.decoder import RewardModel
from rmjax.models.partition import split


def matrix_parameters(model: RewardModel, trainable: str, used: bool = False) -> tuple[float, float]:
    """Returns the number of elements of the layers' matrices, and of those of them that are trained.

    Args:
      used: count those that a token is multiplied with, thus only the experts chosen for it.
    """
    params = model.shapes()
    trained, _ = split(params, trainable)
    config = model.decoder
    share = config.experts_per_token / config.num_experts if used and config.num_experts else 1.0
    size = lambda path, leaf: leaf.size * (share if "/experts/" in path else 1.0)
    count = lambda tree: sum(size(path, leaf) for path, leaf in pytree.flatten(tree).items() if "/layers/" in path)
    return float(count(params)), float(count(trained))
