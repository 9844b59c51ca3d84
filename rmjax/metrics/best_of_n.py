"""Best-of-N from K scored responses of a prompt: the gold value of the response that a proxy reward would pick.

Axis letters: K responses of a prompt, n prompts.
"""

from collections.abc import Sequence

import numpy as np
import scipy.special

from rmjax.core.errors import InputError


def best_of_n(proxy: np.ndarray, gold: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Returns the expected gold value of the best of N responses by the proxy, for each N of `sizes`, float64 [sizes].

    sum_i C(i - 1, N - 1) / C(K, N) · gold_(i), i = 1…K by rising proxy: the mean over all subsets of N of the K
    responses (Nakano et al. 2021, "WebGPT"). Of responses with equal proxies each is picked equally often.

    Args:
      proxy, gold: [K].

    Raises:
      InputError: an N is not in 1 to K.

    >>> best_of_n(np.array([0.0, 1.0, 2.0]), np.array([0.0, 6.0, 3.0]), [1, 2, 3]).tolist()
    [3.0, 4.0, 3.0]
    """
    count, n = len(proxy), np.asarray(sizes, np.int64)
    if n.size and not (n.min() >= 1 and n.max() <= count):
        raise InputError(f"best of {n.max() if n.min() >= 1 else n.min()} of {count} responses; expected 1 to {count}")
    _, group = np.unique(proxy, return_inverse=True)
    mean = np.bincount(group, gold) / np.bincount(group)
    values = mean[group][np.argsort(proxy, kind="stable")]
    rank = np.arange(count)
    # By logarithms, since binomial coefficients of large K overflow; comb(i, N - 1) is 0 below N - 1.
    log_comb = lambda a, b: (
        scipy.special.gammaln(a + 1) - scipy.special.gammaln(b + 1) - scipy.special.gammaln(a - b + 1)
    )
    above = rank >= n[:, None] - 1
    logs = log_comb(np.where(above, rank, n[:, None] - 1), n[:, None] - 1) - log_comb(count, n[:, None])
    return np.where(above, np.exp(logs), 0.0) @ values


def curve_sizes(responses: int) -> list[int]:
    """Returns the N of a curve up to K responses: 1, 2, 4, … and K.

    >>> curve_sizes(6)
    [1, 2, 4, 6]
    """
    return sorted({1 << power for power in range(responses.bit_length())} | {responses})


def top_one(proxy: np.ndarray, gold: np.ndarray) -> float:
    """Returns the probability that the response with the highest proxy is one of the best: m / k if k share it.

    >>> top_one(np.array([2.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    0.5
    """
    return float(np.mean(gold[proxy == proxy.max()] == gold.max()))
