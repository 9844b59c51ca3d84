"""Fits of gold rewards against exact curves and against SciPy, and the distance of best-of-n."""

import math

import numpy as np
import pytest
import scipy.optimize

from rmjax.core.errors import InputError
from rmjax.metrics.overoptimisation import Fit, best_of_n_distance, fit

CURVES = {"best_of_n": lambda d, a, b: d * (a - b * d), "rl": lambda d, a, b: d * (a - b * np.log(d))}


@pytest.mark.parametrize("form", CURVES)
def test_the_coefficients_of_an_exact_curve_are_found(form):
    d = np.linspace(0.1, 4, 20)
    found = fit(form, np.append(0.0, d), np.append(0.0, CURVES[form](d, 1.7, 0.6)))
    np.testing.assert_allclose([found.alpha, found.beta, found.r_squared], [1.7, 0.6, 1.0])
    np.testing.assert_allclose([found.alpha_error, found.beta_error], 0, atol=1e-12)
    np.testing.assert_allclose(found(d), CURVES[form](d, 1.7, 0.6))
    assert found(np.zeros(1)) == 0


@pytest.mark.parametrize("form", CURVES)
def test_coefficients_and_errors_of_a_noisy_curve_are_those_of_scipy(form):
    rng = np.random.default_rng(0)
    d = rng.uniform(0.1, 4, 30)
    r = CURVES[form](d, 1.7, 0.6) + rng.normal(size=30)
    found = fit(form, d, r)
    expected, covariance = scipy.optimize.curve_fit(CURVES[form], d, r)
    np.testing.assert_allclose([found.alpha, found.beta], expected, rtol=1e-4)
    np.testing.assert_allclose([found.alpha_error, found.beta_error], np.sqrt(np.diag(covariance)), rtol=1e-4)
    assert 0 < found.r_squared < 1


@pytest.mark.parametrize("form", CURVES)
def test_the_peak_is_the_highest_point(form):
    found = Fit(form, 1.7, 0.6, 0.0, 0.0, 1.0)
    d = np.linspace(0.01, 12, 100_000)
    assert found.peak == pytest.approx(d[found(d).argmax()], abs=1e-3)
    assert Fit(form, 1.7, 0.0, 0.0, 0.0, 1.0).peak == math.inf


def test_the_distance_of_best_of_n():
    np.testing.assert_allclose(
        best_of_n_distance([1, 2, 100]), [0, (math.log(2) - 0.5) ** 0.5, (math.log(100) - 0.99) ** 0.5]
    )
    with pytest.raises(InputError, match="best of 0 responses"):
        best_of_n_distance([1, 0])


@pytest.mark.parametrize(
    ("form", "distances", "rewards", "message"),
    [
        ("ppo", [1, 2, 3], [1, 2, 3], "form is 'ppo'"),
        ("rl", [1, 2, 3], [1, 2], "one length"),
        ("rl", [1, 2, -3], [1, 2, 3], "0 or more"),
        ("rl", [1, 2, 3], [1, math.nan, 3], "finite"),
        ("rl", [0, 1, 2, 2], [0, 1, 2, 2], "2 different distances above 0"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(form, distances, rewards, message):
    with pytest.raises(InputError, match=message):
        fit(form, np.array(distances, float), np.array(rewards, float))
