"""Decide whether the intermediate results of a recipe can be computed chunk by chunk, whenever they are read.

They cannot if a method needs a global pass over the model, if tensors are derived from a merged weight (weight norm,
spectral norm), or if chunks would be recomputed too often or need too much memory.
"""

from __future__ import annotations

from collections import Counter

from weightspace.merging.plan.estimates import job_memory
from weightspace.merging.plan.options import MEMORY
from weightspace.merging.plan.plan import Plan
from weightspace.user_code import is_user_code

#: Maximum number of times a chunk is computed per chunk of the output, and maximum number of intermediate results.
_MAX_USES, _MAX_STAGES = 16, 16

#: Kinds of jobs whose tensors can be computed in ranges.
_COMPUTED = ("merge", "copy", "agree")


def can_be_computed(plan: Plan) -> bool:
    """Return whether the intermediate results of a plan can be computed on reading.

    The answer depends only on the recipe and the headers, so that a merge is reproduced in the same way.
    """
    uses = _uses(plan)
    stages = {id(stage): stage for stage in _stages(plan)}
    if len(stages) > _MAX_STAGES or any(count > _MAX_USES for count in uses.values()):
        return False
    if not all(map(_is_computable, stages.values())):
        return False
    return all(job_memory(plan, job) <= MEMORY for job in plan.jobs)


def _is_computable(plan: Plan) -> bool:
    """Return whether the tensors of an intermediate result can be computed on reading."""
    if is_user_code(plan.method.name) or any(plan.method.needs_global_pass(job.arguments) for job in plan.jobs):
        return False
    return all(job.kind in _COMPUTED or (job.kind == "largest" and not job.info.is_inexact) for job in plan.jobs)


def _stages(plan: Plan) -> list[Plan]:
    """Return the plans of all intermediate results that a plan depends on, without duplicates."""
    stages: dict[int, Plan] = {}
    waiting = [plan]
    while waiting:
        for member in waiting.pop().members:
            if member.plan is not None and id(member.plan) not in stages:
                stages[id(member.plan)] = member.plan
                waiting.append(member.plan)
    return list(stages.values())


def _uses(plan: Plan) -> Counter[int]:
    """Return id of a plan -> number of times its result is computed for one use of the output."""
    order: list[Plan] = []
    state: dict[int, bool] = {}
    waiting: list[tuple[Plan, bool]] = [(plan, False)]
    while waiting:
        stage, is_done = waiting.pop()
        if is_done:
            order.append(stage)
        elif id(stage) not in state:
            state[id(stage)] = True
            waiting.append((stage, True))
            waiting.extend((member.plan, False) for member in stage.members if member.plan is not None)
    uses: Counter[int] = Counter({id(plan): 1})
    for stage in reversed(order):
        for member in stage.members:
            if member.plan is not None:
                uses[id(member.plan)] += uses[id(stage)]
    return uses
