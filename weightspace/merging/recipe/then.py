"""Steps after a merge, under the key ``then``: each is a document whose model is the result of the one before.

Methods that compare a merge with its models (``Method.after_merge``) get these after it.
"""

from __future__ import annotations

from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.methods import METHODS

#: Keys of a step, and keys of the document that describe the output and so belong to its last step.
_STEP, _OUTPUT = ("merge_method", "parameters"), ("name", "dtype", "out_dtype", "quantise", "chat_template")


def with_steps(content: Any, where: str) -> list[Any]:
    """Return the documents of a merge and of the steps after it; the last one describes the output.

    Args:
        content: a parsed document.
        where: its name in errors.

    Raises:
        WeightspaceError: the steps are not a list of methods with parameters, the document has no base, it moves
            rows of tokens, which the base of later steps would lack, or a step needs its models and it has slices; or
            the step ``lines`` has no parameters, and would change nothing.
    """
    if not isinstance(content, dict) or "then" not in content:
        return [content]
    _check(content, where)
    steps = content["then"]
    base, names = content["base_model"], [f"{where} before step {number}" for number in range(1, len(steps) + 1)]
    first = {key: value for key, value in content.items() if key not in (*_OUTPUT, "then")}
    documents: list[dict[str, Any]] = [{"name": names[0], **first}]
    for number, step in enumerate(steps, start=1):
        models = [{"model": names[number - 1]}, *(_merged_models(content, where) if _compares(step) else ())]
        named = {"name": names[number]} if number < len(steps) else {}
        documents.append({**named, **step, "base_model": base, "models": models})
    documents[-1] |= {key: content[key] for key in _OUTPUT if key in content}
    return documents


def _compares(step: dict[Any, Any]) -> bool:
    """Return whether the method of a step compares the result of a merge with the models that were merged."""
    method = step.get("merge_method")
    return isinstance(method, str) and method in METHODS and METHODS[method].after_merge


def _sets(step: dict[Any, Any], *names: str) -> bool:
    """Return whether a step sets one of the parameters."""
    parameters = step.get("parameters")
    return isinstance(parameters, dict) and any(parameters.get(name) is not None for name in names)


def _merged_models(content: dict[Any, Any], where: str) -> list[dict[str, Any]]:
    """Return the models of a merge, without their parameters."""
    models = content.get("models")
    if not isinstance(models, list):
        names = ", ".join(name for name, row in METHODS.items() if row.after_merge)
        raise WeightspaceError(
            f"{where}: the step {names} of then compares the merge with its models. List them under models, each with "
            "all its layers."
        )
    return [{"model": model["model"]} for model in models if isinstance(model, dict) and "model" in model]


def _check(content: dict[Any, Any], where: str) -> None:
    steps = content["then"]
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise WeightspaceError(
            f"{where}: then must be a list of steps such as {{merge_method: lines, parameters: {{alpha: 0.5}}}}; found "
            f"{steps!r:.60}."
        )
    for number, step in enumerate(steps, start=1):
        if step.get("merge_method") == "lines" and not _sets(step, "alpha", "beta"):
            raise WeightspaceError(
                f"{where}: step {number} of then is lines with neither alpha nor beta. As the step works on one model, "
                "alpha would be 1, and nothing would change. Give the factor in the first layer, such as parameters: "
                "{alpha: 0.5}."
            )
        if wrong := [key for key in step if key not in _STEP]:
            raise WeightspaceError(
                f"{where}: step {number} of then has the key {wrong[0]!r}; expected {' and '.join(_STEP)}. The step "
                "works on the merge, with the base of the recipe."
            )
    if content.get("base_model") is None:
        raise WeightspaceError(f"{where}: the steps of then work on the difference from a base. Give a base_model.")
    for key in ("tokenizer_source", "tokenizer", "names", "components"):
        if content.get(key) is not None:
            raise WeightspaceError(
                f"{where}: then cannot be combined with {key}, since the base of the steps would be another one. Merge "
                "first, and apply the step to the result."
            )
