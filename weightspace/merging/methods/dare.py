r"""DARE: differences from the base dropped at random, and the remainder rescaled.

.. math:: \tilde\delta_i = c_i\, m_i \odot (x_i - b), \qquad m_i \sim \operatorname{Bernoulli}(p_i)

followed by task arithmetic (``dare_linear``) or sign consensus (``dare_ties``). With ``rescale: density`` the factor is
:math:`1/p_i`, as in the paper, and the expectation over masks is the original difference; with ``l1``, as in mergekit,
the factor restores the L1 norm.
"""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Density, Lambda, Normalize, NormalizeElected, Rescale, Seed
from weightspace.merging.methods._random_masks import MaskedVectors
from weightspace.merging.methods._sparsify import visible
from weightspace.merging.methods._tensor_stack import Formula, TensorStack
from weightspace.merging.methods.linear import normalised


@merge_method(
    formula="task arithmetic on randomly dropped and rescaled differences",
    source="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    base="required",
    divides_if="normalize",
    cost=8,
)
def dare_linear(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = "l1",
    seed: Seed = 0,
) -> Formula:
    """Return the formula of DARE (section 3): task arithmetic on dropped and rescaled differences.

    The masks depend only on the seed, the name of the tensor and the label of the model.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.
    """
    masked = MaskedVectors(stack, density, seed, lambda _, index: density[index])
    return masked_sum(masked, weights, lambda_, normalize, rescale)


@merge_method(
    formula="sign consensus of randomly dropped and rescaled differences",
    source="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    base="required",
    cost=8,
)
def dare_ties(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: NormalizeElected = False,
    rescale: Rescale = "l1",
    seed: Seed = 0,
) -> Formula:
    """Return the formula of sign consensus on dropped and rescaled differences."""
    masked = MaskedVectors(stack, density, seed, lambda _, index: density[index])
    return masked_elect(masked, weights, lambda_, normalize, rescale)


def masked_sum(
    masked: MaskedVectors, weights: Sequence[float], factor: float, normalize: bool, rescale: str
) -> Formula:
    """Return the formula of task arithmetic on masked differences.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.
    """
    shown, (own,) = visible(weights, masked.stack), visible([factor], masked.stack)
    shares = normalised(shown) if normalize else shown
    factors = [share * scale for share, scale in zip(shares, masked.scales(rescale), strict=True)]
    return lambda chunk: masked.vectors(chunk, factors).sum().add_to_base(own)


def masked_elect(
    masked: MaskedVectors, weights: Sequence[float], factor: float, normalize: bool, rescale: str
) -> Formula:
    """Return the formula of sign consensus on masked differences."""
    shown, (own,) = visible(weights, masked.stack), visible([factor], masked.stack)
    factors = [weight * scale for weight, scale in zip(shown, masked.scales(rescale), strict=True)]
    return lambda chunk: masked.vectors(chunk, factors).elect(shown, normalize=normalize).add_to_base(own)
