"""The modules of a model that a recipe merges one by one, told by how the names of their tensors begin.

They have mergekit's names: ``text_decoder``, ``vision_tower``, ``multi_modal_projector`` of models of vision and text,
``encoder``, ``decoder``, ``shared`` of an encoder with a decoder; ``default`` is all that belongs to no other. A module
may also be called by the beginning of its names itself: ``model.vision_tower``, ``audio_tower.layers``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.parse import Recipe
from weightspace.suggestions import unknown

#: Module -> how the names of its tensors begin, in files of older and newer releases of transformers.
_BEGINNINGS: Mapping[str, tuple[str, ...]] = {
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

#: The module of everything that belongs to no other.
_DEFAULT = "default"


def divide(names: Collection[str], modules: Sequence[str]) -> dict[str | None, Collection[str]]:
    """Return the names of the tensors of each module.

    Args:
        names: of all tensors of all models.
        modules: those that the recipe names.

    Returns:
        Names by module, in the recipe's order; all of them under None where it names none, or nothing but ``default``.

    Raises:
        WeightspaceError: a module is not known, or has no tensors in these models.
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
            beginnings = dict.fromkeys(name.partition(".")[0] for name in names)
            raise unknown("module of these models", str(module), [*present, *beginnings, _DEFAULT])
    return divided


def module_recipe(recipe: Recipe, module: str | None) -> tuple[int, Recipe]:
    """Return the recipe of one module, and the index that its first slice has in the whole."""
    indices = [index for index, part in enumerate(recipe.slices) if module is None or part.module == module]
    return indices[0], replace(recipe, slices=tuple(recipe.slices[index] for index in indices))


def within(members: Sequence[Member], inside: Collection[str], names: Collection[str]) -> Sequence[Member]:
    """Return members that hold only the tensors of a module.

    Args:
        members: the checkpoints.
        inside: the tensors of the module.
        names: those of all modules.
    """
    if len(inside) == len(names):
        return members
    wanted = set(inside)
    return [_cut(member, wanted) for member in members]


def _cut(member: Member, wanted: set[str]) -> Member:
    """Return a member that holds only some tensors."""
    contents = member.contents
    tensors = {name: info for name, info in contents.tensors.items() if name in wanted}
    tied = {name: owner for name, owner in contents.tied.items() if name in wanted and owner in wanted}
    return replace(member, contents=replace(contents, tensors=tensors, tied=tied))


def _owners(names: Collection[str], modules: Sequence[str]) -> dict[str, str | None]:
    """Return the module of each tensor: that of the longest beginning, of two the one that the recipe names."""
    beginnings: dict[str, str] = {}
    for module in (*(known for known in _BEGINNINGS if known not in modules), *modules):
        beginnings |= dict.fromkeys(_BEGINNINGS.get(module, (module,)), module)
    rest = _DEFAULT if _DEFAULT in modules else None
    owners: dict[str, str | None] = {}
    for name in names:
        parts = name.split(".")
        starts = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        owner = next((beginnings[start] for start in starts if start in beginnings), rest)
        owners[name] = rest if rest is not None and owner not in modules else owner
    return owners
