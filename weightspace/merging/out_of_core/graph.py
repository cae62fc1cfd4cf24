"""Recipes as graphs: whether results in between can be computed chunk by chunk, whenever a later document reads them.

They cannot where a method passes over the whole model first, where a network's weights are stored in parts that follow
from a merged one, or where a chunk would be computed too often or take too much memory.
"""

from __future__ import annotations

from collections import Counter

from weightspace.merging.plan.estimates import job_memory
from weightspace.merging.plan.options import MEMORY
from weightspace.merging.plan.plan import Plan
from weightspace.user_code import is_user_code

#: How often a chunk of one result may be computed for one chunk of the output, and how many results there may be.
_OFTEN, _MANY = 16, 16

#: Kinds of jobs whose tensors can be computed range by range.
_COMPUTED = ("merge", "copy", "agree")


def can_be_computed(plan: Plan) -> bool:
    """Return whether the results that a plan reads can be computed when they are read.

    The answer depends on nothing but the recipe and the headers, so that a merge is reproduced in the same way.
    """
    uses = _uses(plan)
    stages = {id(stage): stage for stage in _stages(plan)}
    if len(stages) > _MANY or any(count > _OFTEN for count in uses.values()):
        return False
    if not all(map(_is_computable, stages.values())):
        return False
    return all(job_memory(plan, job) <= MEMORY for job in plan.jobs)


def _is_computable(plan: Plan) -> bool:
    """Return whether the tensors of a result can be computed when they are read."""
    if is_user_code(plan.method.name) or any(plan.method.needs_global_pass(job.arguments) for job in plan.jobs):
        return False
    return all(job.kind in _COMPUTED or (job.kind == "largest" and not job.info.is_inexact) for job in plan.jobs)


def _stages(plan: Plan) -> list[Plan]:
    """Return the results that a plan is computed from, each before those that it is computed from."""
    found: dict[int, Plan] = {}
    waiting = [plan]
    while waiting:
        for member in waiting.pop().members:
            if member.plan is not None and id(member.plan) not in found:
                found[id(member.plan)] = member.plan
                waiting.append(member.plan)
    return list(found.values())


def _uses(plan: Plan) -> Counter[int]:
    """Return how often each result is computed for one use of the plan, by the identity of its plan."""
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
