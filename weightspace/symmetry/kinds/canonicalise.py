"""Canonical weights: norms folded and groups balanced, so that all remaining symmetries are orthogonal."""

from __future__ import annotations

from weightspace.checkpoints import StateDict
from weightspace.symmetry.kinds.canonical_weights import CanonicalWeights
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec


def canonicalise(spec: SymmetrySpec, state: StateDict) -> StateDict:
    """Return equivalent weights of least norm, in which the norms of the spec are folded.

    Gains and shifts of norms move into the layers that read them, so that gains are one. Then factors that cancel (of
    queries and keys, of values and outputs, of the two linear branches of gated units) are balanced. The function and
    the architecture stay the same, and the symmetries that are left are orthogonal.

    Args:
        spec: of the architecture.
        state: every tensor by name; not modified.

    Returns:
        New tensors; floating-point ones are float64.

    Raises:
        SpecError: a norm cannot be folded because its gain is zero where its shift has to be divided by it.

    Source:
        Folding as in SliceGPT (Ashkboos et al. 2024, https://arxiv.org/abs/2401.15024), but LayerNorm stays. Balancing
        is derived: of all factors with the product ``BᵀA = U Σ Vᵀ``, ``A = Σ^½ Vᵀ`` and ``B = Σ^½ Uᵀ`` have the least
        norm.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.randn(3, 4),), symmetry="full")
        >>> _ = torch.nn.init.uniform_(network[1].weight, 0.5, 2)  # other gains
        >>> canonical = ws.canonicalise(spec, network.state_dict())
        >>> canonical["1.weight"].tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        >>> x = torch.randn(3, 4)
        >>> before = network(x)
        >>> _ = network.load_state_dict(canonical)
        >>> torch.allclose(network(x), before, atol=1e-5)
        True
    """
    weights = CanonicalWeights(spec, state.__getitem__)
    canonical = dict(weights.items())
    return {name: canonical[name] for name in state}
