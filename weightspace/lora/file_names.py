"""Names of a merged adapter's tensors in the formats of kohya and diffusers."""

from __future__ import annotations

from collections.abc import Mapping

from weightspace.errors import CheckpointError
from weightspace.lora.formats.diffusers import diffusers_prefix, dotted, original_prefix
from weightspace.lora.formats.kohya import kohya_prefix
from weightspace.lora.formats.module import DENOISER, Module, canonical


def kohya_names(modules: Mapping[str, Module]) -> dict[str, str]:
    """Return target -> the name of its module in kohya's format.

    Modules keep the names that they have in files of kohya. A denoiser has only one spelling: if some of its names
    follow LDM and others diffusers, all are written as in diffusers, whose loader drops one kind otherwise.

    Raises:
        CheckpointError: the component of a module is unknown.
    """
    spellings = {_is_ldm(module.path) for module in modules.values() if module.component == DENOISER}
    prefixes = {module.component: module.prefix for module in modules.values() if module.prefix.startswith("lora_")}
    components = {module.component for module in modules.values()}
    names = {}
    for target, module in modules.items():
        if not module.prefix and not module.component:
            raise _no_component(target)
        mixed = module.component == DENOISER and len(spellings) > 1
        flat = canonical(module.path) if mixed else module.path.replace(".", "_")
        alone = not any(component.startswith("text_encoder_") for component in components)
        prefix = prefixes.get(module.component) or kohya_prefix(module.component, only_encoder=alone)
        names[target] = f"{prefix}{flat}"
    return names


def diffusers_names(modules: Mapping[str, Module]) -> dict[str, str]:
    """Return target -> the name of its module in diffusers' format, with the component's prefix.

    Names with the prefix ``diffusion_model.`` keep it, except those of U-Nets: they may be names of the original code,
    which diffusers and ComfyUI tell from diffusers' names by this prefix. Those of Wan without a prefix get none.

    Raises:
        CheckpointError: a name can't be converted, or the component of a module is unknown.
    """
    names = {}
    original = original_prefix(module for module in modules.values() if module.component == DENOISER)
    for target, module in modules.items():
        if not module.component:
            raise _no_component(target)
        prefix = diffusers_prefix(module.component, canonical(module.path))
        if prefix == "transformer." and original is not None:
            prefix = original
        names[target] = f"{prefix}{_dotted_path(target, module)}"
    return names


def peft_names(modules: Mapping[str, Module]) -> dict[str, str]:
    """Return target -> the name of its module in PEFT's format, for adapters of a single component.

    Raises:
        CheckpointError: there are several components, or a name can't be converted.
    """
    components = sorted({module.component for module in modules.values()})
    if len(components) > 1:
        raise CheckpointError(
            f"The adapters have modules of {' and '.join(components)}, but PEFT's folder is for one model. Write the "
            "format kohya or diffusers instead."
        )
    return {target: _dotted_path(target, module) for target, module in modules.items()}


def _is_ldm(path: str) -> bool:
    """Return whether a name of a denoiser's module follows LDM."""
    return canonical(path) != path.replace(".", "_")


def _dotted_path(target: str, module: Module) -> str:
    """Return a module's name with dots, as diffusers has it."""
    denoiser = module.component == DENOISER
    if "." in module.path and not (denoiser and _is_ldm(module.path)):
        return module.path
    path = dotted(canonical(module.path) if denoiser else module.path)
    if path is None:
        raise CheckpointError(
            f"The name {target!r} can't be converted to diffusers' names: a part of it is unknown, or diffusers has "
            "other modules. Write the format kohya instead."
        )
    return path


def _no_component(target: str) -> CheckpointError:
    """Return the error for a module whose component is unknown."""
    return CheckpointError(
        f"{target!r} doesn't say which component of a pipeline it belongs to, as names in this format do. Write the "
        "format of the inputs instead."
    )
