"""Settings of every merge method on the scoreboard: its defaults, and the eight settings that are tried to tune it.

Everything was fixed before any result of its method was seen. Methods come from the library's registry: one that is
added there is on the scoreboard, with its own defaults, and with settings by the names of its parameters until it has a
row here. Methods that take tasks and not files are in ``LEARNED``, at their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from suites import Suite

from weightspace.evidence import KINDS
from weightspace.merging.methods import METHODS, Method

#: Parameter -> values; all combinations are tried. ``then.beta`` is a parameter of the step after task arithmetic.
Space: TypeAlias = Mapping[str, Sequence[Any]]

TRIALS = 8
#: Scaling factors of methods that add differences up: 1 is their sum.
SUMS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
#: Scaling factors of methods that average differences, or set the size of the result themselves.
MEANS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
_DENSE_SUMS: Space = {"density": (0.2, 0.5), "lambda": (0.2, 0.3, 0.4, 0.6)}
_DENSE_MEANS: Space = {"density": (0.2, 0.5), "lambda": (0.5, 1.0, 1.5, 2.0)}

#: λ of task arithmetic for eight tasks (Ilharco et al. 2023), also for methods that prepare differences for it.
PUBLISHED_LAMBDA = 0.3
#: Method -> published settings, where the library's own, which are mergekit's, keep all differences or add them up.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "task_arithmetic": {"lambda": PUBLISHED_LAMBDA},
    "ties": {"density": 0.2},
    "knots": {"density": 0.2},
    "core_space": {"density": 0.2},
    "dare_linear": {"density": 0.1, "rescale": "density", "lambda": PUBLISHED_LAMBDA},
    "dare_ties": {"density": 0.1, "rescale": "density", "lambda": PUBLISHED_LAMBDA},
    "della": {"density": 0.3, "epsilon": 0.1},
    "della_linear": {"density": 0.3, "epsilon": 0.1, "lambda": PUBLISHED_LAMBDA},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01, "lambda": PUBLISHED_LAMBDA},
    "breadcrumbs_ties": {"density": 0.9, "gamma": 0.01, "lambda": PUBLISHED_LAMBDA},
    "sce": {"select_topk": 0.1},
    "consensus": {"lambda": PUBLISHED_LAMBDA},
}
#: Method -> what is tried; an empty space has nothing to tune.
SPACES: Mapping[str, Space] = {
    "task_arithmetic": {"lambda": SUMS},
    "ties": _DENSE_MEANS,
    "knots": _DENSE_MEANS,
    "core_space": _DENSE_MEANS,
    "dare_linear": _DENSE_SUMS,
    "dare_ties": _DENSE_SUMS,
    "della": _DENSE_MEANS,
    "della_linear": _DENSE_SUMS,
    "breadcrumbs": _DENSE_SUMS,
    "breadcrumbs_ties": _DENSE_SUMS,
    "lines": {"alpha": (0.1, 0.2, 0.3, 0.4), "beta": (0.2, 0.5)},
    "model_stock": {"filter_wise": (False, True)},
    "sce": {"select_topk": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)},
    "ram": {"epsilon": (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
    "ramplus_tl": {"epsilon": (1e-5, 1e-4, 1e-3, 1e-2), "r": (0.1, 0.3)},
    "regmean": {"reduce": (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)},
    "linear": {},
    "karcher": {},
    "multislerp": {},
    "fisher": {},
    "consensus": {"tall_mask_lambda": (0.2, 0.4), "lambda": (0.2, 0.3, 0.4, 0.6)},
    "localize_and_stitch": {"density": (0.05, 0.2), "lambda": (0.5, 1.0, 1.5, 2.0)},
    "svc": {"lambda": (0.3, 0.5, 0.8, 1.0), "then.alpha": (0.25, 1.0)},
    "subspace_boosting": {"lambda": (0.2, 0.3, 0.5, 0.8), "then.beta": (0.01, 0.1)},
}
#: Methods that are a step after a merge although they take several models: the merge and the merged ones.
STEPS = ("svc",)
#: Methods that give no merge of all models, nor a step after one -> why they are left out.
LEFT_OUT: Mapping[str, str] = {
    "passthrough": "copies one model",
    "wise_ft": "merges one model with its base; of several, it is task arithmetic",
    "arcee_fusion": "merges one model with another",
    "tall_mask": "rebuilds one of the merged models",
}

#: Examples of every task that evidence is collected on, and that methods outside the registry learn from.
EVIDENCE_EXAMPLES = 128
#: Label of a method outside the registry, which learns from data with ``scoreboard_learned`` -> the data.
LEARNED: Mapping[str, str] = {
    "regmean_plusplus": "128 training examples of every task, without labels",
    "least_squares": "128 training examples of every task, without labels",
    "localize_and_stitch, learned masks": "128 training examples of every task, with labels",
    "learned_soup": "128 training examples of every task, with labels",
    "adamerging": "the validation inputs of every task, without labels",
}

#: What the search chooses from: methods of different kinds, λ and the density.
SEARCHED = ("task_arithmetic", "ties", "breadcrumbs", "iso_c", "tsv_m", "wudi")
SEARCH_TRIALS, SEARCH_ENGINE = 24, "tpe"


#: Published orders: a method, one that it is said to be better than, and the paper.
ORDERS: Sequence[tuple[str, str, str]] = (
    ("ties", "task_arithmetic", "Yadav et al. 2023"),
    ("breadcrumbs", "task_arithmetic", "Davari and Belilovsky 2024"),
    ("lines", "task_arithmetic", "Wang et al. 2024"),
    ("wudi", "task_arithmetic", "Cheng et al. 2025"),
    ("tsv_m", "task_arithmetic", "Gargiulo et al. 2025"),
    ("tsv_m", "ties", "Gargiulo et al. 2025"),
    ("iso_c", "tsv_m", "Marczak et al. 2025"),
    ("iso_cts", "iso_c", "Marczak et al. 2025"),
    ("della", "dare_ties", "Deep et al. 2024"),
    ("fisher", "linear", "Matena and Raffel 2022"),
    ("regmean", "fisher", "Jin et al. 2023"),
    ("consensus", "task_arithmetic", "Wang et al. 2024, TALL masks"),
    ("optmerge", "wudi", "OptMerge 2025"),
    ("task_arithmetic, then svc", "task_arithmetic", "SVC 2026"),
    ("task_arithmetic, then subspace_boosting", "task_arithmetic", "Skorobogat et al. 2025"),
    ("regmean_plusplus", "regmean", "Nguyen et al. 2025"),
    ("adamerging", "task_arithmetic", "Yang et al. 2024"),
    ("localize_and_stitch, learned masks", "task_arithmetic", "He et al. 2025"),
)


@dataclass(frozen=True)
class Entry:
    """A line of the scoreboard.

    Attributes:
        label: its name in the table.
        method: the method that is tried.
        defaults: parameters by the names in a space.
        space: what is tried when it is tuned.
        step: whether the method is a step after task arithmetic.
        evidence: kind of statistics that it needs of every model, or "".
        reason: why it is left out, or "".
    """

    label: str
    method: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=dict)
    step: bool = False
    evidence: str = ""
    reason: str = ""

    def recipe(self, suite: Suite, evidence: Mapping[str, str]) -> dict[str, Any]:
        """Return the recipe at the default settings.

        Args:
            suite: the models.
            evidence: name of a task -> file of its statistics.
        """
        models: list[dict[str, Any]] = [{"model": str(path)} for path in suite.models.values()]
        if METHODS[self.method].weighted or self.step:
            models = [{**model, "parameters": {"weight": 1.0}} for model in models]
        for model, name in zip(models, suite.models, strict=True):
            if self.evidence:
                model["evidence"] = evidence[name]
        first = {name: value for name, value in self.defaults.items() if not name.startswith("then.")}
        after = {name[5:]: value for name, value in self.defaults.items() if name.startswith("then.")}
        recipe: dict[str, Any] = {"merge_method": "task_arithmetic" if self.step else self.method, "models": models}
        if self.step or METHODS[self.method].base == "required":
            recipe["base_model"] = str(suite.base)
        if first:
            recipe["parameters"] = first
        if self.step:
            recipe["then"] = [{"merge_method": self.method, **({"parameters": after} if after else {})}]
        return recipe

    def places(self) -> dict[str, dict[str, list[Any]]]:
        """Return the space by place in the recipe, as ``ws.search`` takes it."""
        return {
            name.replace("then.", "then[0].parameters.") if name.startswith("then.") else f"parameters.{name}": {
                "choices": list(values)
            }
            for name, values in self.space.items()
        }


def entries(tasks: int, methods: Mapping[str, Method] = METHODS) -> list[Entry]:
    """Return the lines of all methods of the registry for that many models."""
    return [_entry(row, tasks) for row in methods.values()]


def _entry(row: Method, tasks: int) -> Entry:
    most, least = row.models[1], row.models[0]
    if row.name in LEFT_OUT:
        return Entry(row.name, row.name, reason=LEFT_OUT[row.name])
    single = most == 1 and row.base in ("end", "required") and not any(one.required for one in row.parameters)
    step = single or row.name in STEPS
    if not step and not (least <= tasks <= (tasks if most is None else most)):
        return Entry(row.name, row.name, reason="merges one model with its base" if most == 1 else "merges two models")
    if row.evidence and row.evidence not in KINDS:
        return Entry(row.name, row.name, reason=f"needs {row.evidence}, which is no statistics of training data")
    if missing := [one.name for one in row.parameters if one.required and one.name not in DEFAULTS.get(row.name, {})]:
        return Entry(row.name, row.name, reason=f"has no default of {missing[0]}")
    defaults, space = dict(DEFAULTS.get(row.name, {})), SPACES.get(row.name)
    if step:
        defaults, space = {"lambda": PUBLISHED_LAMBDA, **defaults}, space or {"lambda": SUMS}
    label = f"task_arithmetic, then {row.name}" if step else row.name
    return Entry(label, row.name, defaults, _space(row) if space is None else space, step, row.evidence)


def _space(row: Method) -> Space:
    """Return what is tried of a method without a row in ``SPACES``: λ, or a number with bounds."""
    names = {one.name: one for one in row.parameters}
    if "lambda" in names:
        return {"lambda": MEANS}
    bounded = [one for one in row.parameters if isinstance(one.default, float) and (one.low, one.high) == (0, 1)]
    if not bounded:
        return {}
    values = [round((index + 1) / TRIALS, 3) for index in range(TRIALS)]
    return {bounded[0].name: values}


def search_recipe(suite: Suite) -> dict[str, Any]:
    """Return the recipe in which ``ws.search`` chooses the method, λ and the density."""
    return {
        "merge_method": {"choices": list(SEARCHED)},
        "base_model": str(suite.base),
        "models": [{"model": str(path)} for path in suite.models.values()],
        "parameters": {"lambda": {"search": [0.1, 1.5]}, "density": {"search": [0.1, 1.0]}},
    }
