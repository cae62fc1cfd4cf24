"""Modules of a model that a recipe merges separately, identified by the prefixes of their tensor names.

Modules have mergekit's names: ``text_decoder``, ``vision_tower`` and ``multi_modal_projector`` in vision-language
models; ``encoder``, ``decoder`` and ``shared`` in encoder-decoder models; ``default`` contains all other tensors. A
module may also be given by a prefix itself: ``model.vision_tower``, ``audio_tower.layers``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.parse import Recipe
from weightspace.suggestions import unknown

#: Module -> prefixes of its tensor names, in older and newer releases of transformers.
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "text_decoder": (
        *("language_model", "model.language_model", "model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    ),
    "vision_tower": ("vision_tower", "model.vision_tower", "visual", "model.visual"),
    "vision_model": ("vision_model", "model.vision_model"),
    "multi_modal_projector": (
        *("multi_modal_projector", "model.multi_modal_projector"),
        *("visual.merger", "visual.deepstack_merger_list"),
        *("model.visual.merger", "model.visual.deepstack_merger_list"),
    ),
    "encoder": ("encoder", "model.encoder"),
    "decoder": ("decoder", "model.decoder", "proj_out"),
    "shared": ("shared", "model.shared", "lm_head"),
}

#: The module of all tensors that belong to no other module.
_DEFAULT = "default"


def divide(names: Collection[str], modules: Sequence[str]) -> dict[str | None, Collection[str]]:
    """Return the names of the tensors of each module.

    Args:
        names: names of all tensors of all models.
        modules: modules of the recipe.

    Returns:
        Module -> names of its tensors, in the recipe's order. Without modules, or with ``default`` alone, all names
        belong to a single entry.

    Raises:
        WeightspaceError: a module is unknown, or has no tensors in these models.
    """
    if not modules or tuple(modules) == (_DEFAULT,):
        return {modules[0] if modules else None: names} if modules else {None: names}
    owners = _owners(names, modules)
    divided: dict[str | None, Collection[str]] = {
        module: [name for name in names if owners[name] == module] for module in modules
    }
    for module, inside in divided.items():
        if not inside:
            present = dict.fromkeys(owner for owner in owners.values() if owner is not None)
            prefixes = dict.fromkeys(name.partition(".")[0] for name in names)
            raise unknown("module of these models", str(module), [*present, *prefixes, _DEFAULT])
    return divided


def module_recipe(recipe: Recipe, module: str | None) -> tuple[int, Recipe]:
    """Return the index of a module's first slice in the recipe, and the recipe of that module alone."""
    indices = [index for index, part in enumerate(recipe.slices) if module is None or part.module == module]
    return indices[0], replace(recipe, slices=tuple(recipe.slices[index] for index in indices))


def within(members: Sequence[Member], inside: Collection[str], names: Collection[str]) -> Sequence[Member]:
    """Return the members restricted to the tensors of a module.

    Args:
        members: the checkpoints.
        inside: names of the module's tensors.
        names: names of all tensors.
    """
    if len(inside) == len(names):
        return members
    wanted = set(inside)
    return [_cut(member, wanted) for member in members]


def _cut(member: Member, wanted: set[str]) -> Member:
    """Return a member restricted to the given tensors."""
    contents = member.contents
    tensors = {name: info for name, info in contents.tensors.items() if name in wanted}
    tied = {name: owner for name, owner in contents.tied.items() if name in wanted and owner in wanted}
    return replace(member, contents=replace(contents, tensors=tensors, tied=tied))


def _owners(names: Collection[str], modules: Sequence[str]) -> dict[str, str | None]:
    """Return the module of each tensor: the longest matching prefix wins, and modules of the recipe win ties."""
    prefixes: dict[str, str] = {}
    for module in (*(known for known in _PREFIXES if known not in modules), *modules):
        prefixes |= dict.fromkeys(_PREFIXES.get(module, (module,)), module)
    rest = _DEFAULT if _DEFAULT in modules else None
    owners: dict[str, str | None] = {}
    for name in names:
        parts = name.split(".")
        starts = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        owner = next((prefixes[start] for start in starts if start in prefixes), rest)
        owners[name] = rest if rest is not None and owner not in modules else owner
    return owners
