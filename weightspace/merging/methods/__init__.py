"""The table of merging methods: a row and a plain function each, a small file a family. Reading it costs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from weightspace.merging.methods.method import Method, Parameter

_LAMBDA = Parameter("lambda", 1.0, "factor of the merged difference from the base")
_DENSITY = Parameter("density", 1.0, "share of the differences that is kept", low=0, high=1, per_model=True)
_SEED = Parameter("seed", 0, "of the random masks", low=0, high=2**63 - 1)
_RESCALE = Parameter(
    "rescale",
    "l1",
    "what the kept differences are scaled by: l1 restores the L1 norm (true), density divides by it, none (false)",
    choices=("l1", "density", "none", "true", "false"),
)
_RESCALE_L1 = Parameter("rescale", False, "restore the L1 norm of the difference after trimming")
_EPSILON = Parameter("epsilon", 0.15, "half the range of the keep probabilities", low=0, high=1, per_model=True)
_GAMMA = Parameter("gamma", 0.01, "share of the largest differences that is dropped", low=0, high=1, per_model=True)
_RAM_EPSILON = Parameter("epsilon", 1e-5, "a difference of at most this size counts as none", low=0)


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", default, "divide by the sum of the weights")


def _t(help_text: str) -> Parameter:
    return Parameter("t", None, help_text)


_ROWS = (
    Method(
        "linear",
        "linear:linear",
        "Σ w_i x_i / Σ w_i",
        "Wortsman et al. 2022, https://arxiv.org/abs/2203.05482",
        (_normalize(True),),
        normalised=True,
    ),
    Method(
        "slerp",
        "slerp:slerp",
        "the arc from the base (t = 0) to the model (t = 1)",
        "Shoemake 1985, https://doi.org/10.1145/325334.325242",
        (_t("position on the arc: 0 is the base, 1 the model"),),
        base="end",
        models=(1, 1),
        weighted=False,
        cost=4,
    ),
    Method(
        "nuslerp",
        "nuslerp:nuslerp",
        "the arc between two models, or their differences from the base, at w_2 / (w_1 + w_2)",
        "mergekit, https://arxiv.org/abs/2403.13257",
        (
            Parameter("nuslerp_flatten", True, "one arc for the whole tensor, else one a row (or column)"),
            Parameter("nuslerp_row_wise", False, "without flattening: arcs along dim 0, else along the last dim"),
        ),
        base="optional",
        models=(2, 2),
        grain="slices",
        normalised=True,
        cost=4,
    ),
    Method(
        "multislerp",
        "multislerp:multislerp",
        "the mean of the directions, as long as the models are on average",
        "mergekit, https://arxiv.org/abs/2403.13257",
        (Parameter("normalize_weights", True, "divide the weights by their sum"),),
        base="optional",
        normalised=True,
        cost=4,
    ),
    Method(
        "karcher",
        "karcher:karcher",
        "the Riemannian mean of the directions, as long as the models are on average",
        "Karcher 1977, https://doi.org/10.1002/cpa.3160300502",
        (
            Parameter("max_iter", 10, "steps at most", low=1, high=10_000),
            Parameter("tol", 1e-5, "stop when a step is shorter, in radians", low=0),
        ),
        weighted=False,
        normalised=True,
        cost=4,
    ),
    Method(
        "task_arithmetic",
        "task_arithmetic:task_arithmetic",
        "b + λ Σ w_i (x_i − b)",
        "Ilharco et al. 2023, https://arxiv.org/abs/2212.04089",
        (_LAMBDA, _normalize(False)),
        base="required",
    ),
    Method(
        "wise_ft",
        "task_arithmetic:wise_ft",
        "b + α (x − b)",
        "Wortsman et al. 2022, https://arxiv.org/abs/2109.01903",
        (Parameter("alpha", 0.5, "0 is the base, 1 the fine-tuned model"),),
        base="required",
        models=(1, 1),
        weighted=False,
    ),
    Method(
        "ties",
        "ties:ties",
        "b + λ × the mean of the trimmed differences that agree with the elected sign",
        "Yadav et al. 2023, https://arxiv.org/abs/2306.01708",
        (
            _DENSITY,
            _LAMBDA,
            _normalize(True),
            _RESCALE_L1,
            Parameter("scope", "tensor", "trim tensor by tensor, or over the whole model", choices=("tensor", "model")),
        ),
        base="required",
        survey="ties:survey",
        cost=8,
    ),
    Method(
        "dare_linear",
        "dare:dare_linear",
        "task arithmetic on randomly dropped and rescaled differences",
        "Yu et al. 2024, https://arxiv.org/abs/2311.03099",
        (_DENSITY, _LAMBDA, _normalize(False), _RESCALE, _SEED),
        base="required",
        cost=8,
    ),
    Method(
        "dare_ties",
        "dare:dare_ties",
        "sign consensus of randomly dropped and rescaled differences",
        "Yu et al. 2024, https://arxiv.org/abs/2311.03099",
        (_DENSITY, _LAMBDA, _normalize(False), _RESCALE, _SEED),
        base="required",
        cost=8,
    ),
    Method(
        "della",
        "della:della",
        "sign consensus of differences dropped at random, the small ones more often",
        "Deep et al. 2024, https://arxiv.org/abs/2406.11617",
        (_DENSITY, _EPSILON, _LAMBDA, _normalize(True), _RESCALE, _SEED),
        base="required",
        grain="slices",
        cost=40,
    ),
    Method(
        "della_linear",
        "della:della_linear",
        "task arithmetic on differences dropped at random, the small ones more often",
        "Deep et al. 2024, https://arxiv.org/abs/2406.11617",
        (_DENSITY, _EPSILON, _LAMBDA, _normalize(False), _RESCALE, _SEED),
        base="required",
        grain="slices",
        cost=40,
    ),
    Method(
        "breadcrumbs",
        "breadcrumbs:breadcrumbs",
        "task arithmetic without the largest and the smallest differences",
        "Davari and Belilovsky 2024, https://arxiv.org/abs/2312.06795",
        (_DENSITY, _GAMMA, _LAMBDA, _normalize(False), _RESCALE_L1),
        base="required",
        cost=11,
    ),
    Method(
        "breadcrumbs_ties",
        "breadcrumbs:breadcrumbs_ties",
        "sign consensus without the largest and the smallest differences",
        "Davari and Belilovsky 2024, https://arxiv.org/abs/2312.06795",
        (_DENSITY, _GAMMA, _LAMBDA, _normalize(False), _RESCALE_L1),
        base="required",
        cost=14,
    ),
    Method(
        "model_stock",
        "model_stock:model_stock",
        "t mean(x) + (1 − t) b, with t from the angle between the differences",
        "Jang et al. 2024, https://arxiv.org/abs/2403.19522",
        (Parameter("filter_wise", False, "an angle for every slice along dim 0, not one a tensor"),),
        base="required",
        models=(2, None),
        grain="slices",
        weighted=False,
        cost=4,
    ),
    Method(
        "sce",
        "sce:sce",
        "b + the differences of highest variance, weighted by their mean squares, that agree in sign",
        "Wan et al. 2024, https://arxiv.org/abs/2408.07990",
        (Parameter("select_topk", 1.0, "share of the elements of highest variance that is kept", low=0, high=1),),
        base="required",
        weighted=False,
        cost=16,
    ),
    Method(
        "nearswap",
        "nearswap:nearswap",
        "b + clamp(t / |x − b|, 0, 1) (x − b)",
        "mergekit, https://arxiv.org/abs/2403.13257",
        (_t("differences up to this size are taken in full"),),
        base="end",
        models=(1, 1),
        weighted=False,
        scale_free=False,
    ),
    Method(
        "arcee_fusion",
        "arcee_fusion:arcee_fusion",
        "x where its change from b is an outlier of importance, else b",
        "mergekit, https://arxiv.org/abs/2403.13257",
        base="end",
        models=(1, 1),
        grain="slices",
        weighted=False,
        scale_free=False,
        cost=60,
    ),
    Method(
        "ram",
        "ram:ram",
        "b + changes that one model made, + the mean of those that several made",
        "Reinforced Agent Merging 2026, https://arxiv.org/abs/2601.13572",
        (_RAM_EPSILON,),
        base="required",
        weighted=False,
        scale_free=False,
        cost=6,
    ),
    Method(
        "ramplus_tl",
        "ram:ramplus_tl",
        "ram, with the changes that one model made enlarged by its share of overlap",
        "Reinforced Agent Merging 2026, https://arxiv.org/abs/2601.13572",
        (
            _RAM_EPSILON,
            Parameter("r", 0.1, "how much the overlap enlarges"),
            Parameter("alpha", 0.2, "overlap that counts at most", low=0),
        ),
        base="required",
        weighted=False,
        scale_free=False,
        cost=9,
    ),
    Method(
        "passthrough",
        "passthrough:passthrough",
        "scale × x",
        "mergekit, https://arxiv.org/abs/2403.13257",
        (Parameter("scale", 1.0, "factor"),),
        models=(1, 1),
        weighted=False,
    ),
    Method(
        "tsv_m",
        "task_singular:tsv_m",
        "b + λ Σ of the leading task singular vectors, made orthogonal between the tasks",
        "Gargiulo et al. 2025, https://arxiv.org/abs/2412.00081",
        (_LAMBDA,),
        base="required",
        grain="whole",
        weighted=False,
    ),
    Method(
        "iso_c",
        "isotropic:iso_c",
        "b + λ × the summed differences with all singular values set to their mean",
        "Marczak et al. 2025, https://arxiv.org/abs/2502.04959",
        (_LAMBDA,),
        base="required",
        grain="whole",
        weighted=False,
    ),
    Method(
        "iso_cts",
        "isotropic:iso_cts",
        "iso_c on a common subspace and the residual directions of every task",
        "Marczak et al. 2025, https://arxiv.org/abs/2502.04959",
        (_LAMBDA, Parameter("common", 0.8, "share of the rank for the common subspace", low=0, high=1)),
        base="required",
        grain="whole",
        weighted=False,
    ),
    Method(
        "knots",
        "knots:knots",
        "b + an elementwise merge of the differences in the row space that all tasks share",
        "Stoica et al. 2025, https://arxiv.org/abs/2410.19735",
        (
            _DENSITY,
            _LAMBDA,
            _normalize(True),
            Parameter("inner", "ties", "the merge in that space", choices=("ties", "task_arithmetic")),
        ),
        base="required",
        grain="whole",
    ),
    Method(
        "core_space",
        "core_space:core_space",
        "b + an elementwise merge of the low-rank differences in the bases that all tasks share",
        "Panariello et al. 2025, https://arxiv.org/abs/2509.17786",
        (
            _DENSITY,
            _LAMBDA,
            _normalize(True),
            Parameter("inner", "ties", "the merge in that space", choices=("ties", "task_arithmetic")),
        ),
        base="required",
        grain="whole",
    ),
    Method(
        "regmean",
        "regmean:regmean",
        "(Σ G_i)⁻¹ Σ G_i W_i, with G_i = X_iᵀX_i of the inputs of every linear layer; the mean elsewhere",
        "Jin et al. 2023, https://arxiv.org/abs/2212.09849",
        (Parameter("reduce", 0.9, "factor of what is off the diagonal of G_i", low=0, high=1),),
        grain="whole",
        weighted=False,
        normalised=True,
        evidence="gram",
    ),
    Method(
        "fisher",
        "fisher:fisher",
        "Σ w_i F_i x_i / Σ w_i F_i, with F_i the diagonal Fisher information",
        "Matena and Raffel 2022, https://arxiv.org/abs/2111.09832",
        normalised=True,
        evidence="fisher",
        cost=6,
    ),
)

#: Name in recipes and on the command line -> row. tests/merging/test_every_method.py checks every one.
METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}

__all__ = ["METHODS", "Method", "Parameter"]
