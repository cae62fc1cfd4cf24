"""Prior shift: Bayes' rule with other frequencies, and their estimate from unlabelled data."""

import numpy as np
import pytest
import torch

from weightspace.errors import WeightspaceError
from weightspace.labels import estimate_priors, shift_priors

OLD, NEW = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])


def drawn(frequencies: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return likelihoods of points of three Gaussians, and their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, count, p=frequencies)
    x = rng.normal(size=count) + 1.5 * classes
    return np.exp(-0.5 * (x[:, None] - 1.5 * np.arange(3)) ** 2), classes


def posterior(likelihoods: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    weighted = likelihoods * frequencies
    return weighted / weighted.sum(1, keepdims=True)


def test_it_is_the_posterior_under_the_new_frequencies() -> None:
    likelihoods, _ = drawn(NEW, 50, 0)
    probabilities = posterior(likelihoods, OLD)
    before = probabilities.copy()
    np.testing.assert_allclose(shift_priors(probabilities, OLD, NEW), posterior(likelihoods, NEW))
    np.testing.assert_allclose(
        shift_priors(torch.tensor(probabilities), 10 * OLD, 3 * NEW), posterior(likelihoods, NEW)
    )
    np.testing.assert_array_equal(probabilities, before)
    np.testing.assert_allclose(shift_priors(probabilities, OLD, OLD), probabilities)
    stacked = shift_priors(probabilities.reshape(5, 10, 3), OLD, NEW)
    np.testing.assert_allclose(stacked.reshape(50, 3), posterior(likelihoods, NEW))
    assert shift_priors(probabilities[0], OLD, NEW).shape == (3,)


def test_predictions_are_more_often_right_after_the_shift() -> None:
    likelihoods, classes = drawn(NEW, 2000, 1)
    probabilities = posterior(likelihoods, OLD)
    right = [(p.argmax(1) == classes).mean() for p in (probabilities, shift_priors(probabilities, OLD, NEW))]
    assert right[1] > right[0] + 0.05


def test_the_frequencies_are_found_without_labels() -> None:
    likelihoods, classes = drawn(NEW, 4000, 2)
    found = estimate_priors(posterior(likelihoods, OLD), OLD)
    assert found.converged
    assert found.frequencies.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.frequencies, NEW, atol=0.04)

    def likelihood(frequencies: np.ndarray) -> float:
        return float(np.log((likelihoods * frequencies).sum(1)).sum())

    assert likelihood(found.frequencies) >= likelihood(np.bincount(classes) / len(classes))
    rng = np.random.default_rng(3)
    for _ in range(50):  # no nearby frequencies are more likely
        moved = np.maximum(found.frequencies + 0.01 * rng.normal(size=3), 1e-9)
        assert likelihood(found.frequencies) >= likelihood(moved / moved.sum()) - 1e-6


def test_invalid_frequencies_are_refused() -> None:
    p = [[0.5, 0.5]]
    for call, message in (
        (lambda: shift_priors(p, [1, 0], [1, 1]), "old frequency of class 1 is 0"),
        (lambda: shift_priors(p, [1, -1], [1, 1]), "The old frequencies must be a vector"),
        (lambda: shift_priors(p, [1, 1], [0, 0]), "The new frequencies must be a vector"),
        (lambda: shift_priors(p, [1, 1], [1, np.nan]), "The new frequencies"),
        (lambda: shift_priors(p, [1, 1], [1, 1, 1]), "2 old frequencies and 3 new"),
        (lambda: shift_priors(p, [1, 1, 1], [1, 1, 1]), "3 classes were observed"),
        (lambda: shift_priors([[1.0, 0.0]], [1, 1], [0, 1]), "Row 0 gives probability only to classes"),
        (lambda: shift_priors(p, "ab", [1, 1]), "The old frequencies"),
        (lambda: estimate_priors(np.zeros((0, 2)), [1, 1]), "no rows"),
        (lambda: estimate_priors([[-1.0, 2.0]], [1, 1]), "is negative"),
    ):
        with pytest.raises(WeightspaceError, match=message):
            call()
