"""Networks from ``--network SOURCE``, built by one of several libraries.

Nothing is downloaded: weights are random, since a spec only needs the code.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.yaml_file import parse_yaml
from weightspace.clip import build_clip, pixels_of
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief
from weightspace.sources import LIBRARIES, check_network_source
from weightspace.suggestions import unknown
from weightspace.symmetry.inputs import ExampleInputs, Inputs
from weightspace.user_code import is_user_code, load_object

#: Dtypes of inputs on the command line.
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}

#: Default exclusive bound of integer inputs: all are 1, as in a mask that hides nothing.
_BELOW = 2


@brief
@dataclass(frozen=True)
class Network:
    """A module with random weights, and inputs to trace and verify it: a tuple, or a mapping by name."""

    module: nn.Module
    example_args: ExampleInputs


def load_network(
    source: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    inputs: Sequence[str] = (),
    inputs_required: bool = True,
) -> Network:
    """Build the network given by ``source``, with random weights.

    Args:
        source: ``torchvision:resnet18``, ``timm:vit_tiny_patch16_224``, ``open_clip:ViT-B-32``,
            ``transformers:FOLDER`` (built from its config.json) or ``file.py:callable``, which returns a module or
            ``(module, example_args)``, where the latter is a tuple, a mapping of keyword inputs or one tensor. Append
            builder options after commas: ``torchvision:resnet18,num_classes=10``, ``model.py:build,width=64``.
        input_shape: shape of the only floating-point input, including the batch, instead of the source's default.
        inputs: several or other inputs, each as ``[NAME=]SIZES[:DTYPE[:BELOW]]``: ``1,3,32,32``,
            ``input_ids=1,16:int64:30522``, ``attention_mask=1,16:int64``. Integers are drawn from 1 to ``BELOW`` − 1
            (default 2, so all are 1). Either all inputs are named, or none.
        inputs_required: if False, a module without known inputs is built without any.

    Raises:
        WeightspaceError: unknown source or option, a package that isn't installed, or a builder that fails.

    Example:
        >>> import weightspace as ws
        >>> network = ws.load_network("torchvision:resnet18,num_classes=10")
        >>> spec = ws.derive_spec(network.module, network.example_args)
        >>> len(spec.groups)
        12
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if is_user_code(source):
            network = _user_network(source, input_shape is not None or bool(inputs) or not inputs_required)
        else:
            network = _library_network(source)
    if inputs:
        return Network(network.module, parse_inputs(inputs))
    if input_shape is not None:
        return Network(network.module, (torch.randn(input_shape, generator=generator),))
    return network


def _library_network(source: str) -> Network:
    kind, _, rest = source.partition(":")
    check_network_source(source if rest else kind)
    name, chosen = _options(kind, rest)
    try:
        return _DOORS[kind](name, chosen)
    except WeightspaceError:
        raise
    except Exception as error:  # libraries may raise anything for a wrong name or option
        line = (str(error).strip().splitlines() or [""])[0]
        raise WeightspaceError(f"{source} cannot be built: {type(error).__name__}: {line}") from error


def _options(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Split a builder and its options, ``NAME,key=value,…``."""
    name, *options = text.split(",")
    if bad := [option for option in options if "=" not in option]:
        raise WeightspaceError(
            f"Options of {kind}:{name} are name=value, for example num_classes=10; found {bad[0]!r}."
        )
    pairs = (option.partition("=") for option in options)
    return name, {key: _value(value, f"The option {key}") for key, _, value in pairs}


def parse_inputs(texts: Sequence[str]) -> ExampleInputs:
    """Return random inputs of a network: a tuple, or a mapping if they are named; see ``load_network``.

    Raises:
        WeightspaceError: a text isn't an input, or only some inputs are named.
    """
    generator = torch.Generator().manual_seed(0)
    named = [_input(text, generator) for text in texts]
    names = [name for name, _ in named]
    if all(name is None for name in names):
        return tuple(tensor for _, tensor in named)
    if None in names or len(set(names)) < len(names):
        raise WeightspaceError(f"Either all inputs have distinct names, or none has a name; found {' '.join(texts)}.")
    return {name: tensor for name, tensor in named if name is not None}


def _input(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    """Return the name of an input (None without one), and the input."""
    before, equals, rest = text.rpartition("=")
    sizes, *more = rest.split(":")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
        dtype = more[0] if more else "float32"
        below = int(more[1]) if len(more) > 1 else _BELOW
    except ValueError:
        shape, dtype, below = (), "", 0
    if not shape or min(shape) < 1 or len(more) > 2 or dtype not in _DTYPES or below < 2 or (equals and not before):
        raise WeightspaceError(
            f"An input is [NAME=]SIZES[:DTYPE[:BELOW]], as 1,3,32,32 or input_ids=1,16:int64:30522, with a dtype of "
            f"{', '.join(_DTYPES)} and an integer bound of at least 2; found {text!r}."
        )
    chosen = _DTYPES[dtype]
    if chosen.is_floating_point:
        tensor = torch.randn(shape, generator=generator, dtype=chosen)
    elif chosen == torch.bool:
        tensor = torch.rand(shape, generator=generator) < 0.5
    else:
        tensor = torch.randint(1, below, shape, generator=generator, dtype=chosen)
    return before or None, tensor


def _value(text: str, where: str) -> Any:
    """Parse the value of an option as YAML."""
    documents = parse_yaml(text, where)
    return documents[0] if documents else None


def _check_no_task(value: object, source: str) -> None:
    """Check that a network source isn't a task."""
    if not isinstance(value, nn.Module) and all(hasattr(value, part) for part in ("network", "score")):
        raise WeightspaceError(f"{source} is a task, not a network. Give it as --task {source}.")


def _user_network(source: str, has_input: bool) -> Network:
    path, _, rest = source.partition(".py:")
    name, chosen = _options(f"{path}.py", rest)
    builder = load_object(f"{path}.py:{name}")
    _check_no_task(builder, f"{path}.py:{name}")
    if isinstance(builder, nn.Module):
        if chosen:
            raise WeightspaceError(f"{path}.py:{name} is a module, which takes no options; found {', '.join(chosen)}.")
        built: Any = builder
    else:
        try:
            built = builder(**chosen)
        except Exception as error:
            raise WeightspaceError(f"Calling {source} raised {type(error).__name__}: {error}") from error
    _check_no_task(built, source)
    module, example_args = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(module, nn.Module):
        raise WeightspaceError(
            f"{source} returned a {type(module).__name__}; expected a module, or (module, example_args), the latter "
            "a tuple, a mapping or one tensor."
        )
    if example_args is None and not has_input:
        raise WeightspaceError(
            f"{source} returned a module without inputs; give them (--input 1,3,32,32, or by name, --input "
            "input_ids=1,16:int64:30522), or return (module, example_args)."
        )
    if isinstance(example_args, list | Tensor):
        example_args = tuple(example_args) if isinstance(example_args, list) else (example_args,)
    if example_args is not None and not has_input:
        Inputs.of(example_args)  # raises a clear error if they are invalid
    return Network(module, () if example_args is None else example_args)


def _package(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package can be there and broken
        line = (str(error).strip().splitlines() or [""])[0]
        raise WeightspaceError(
            f"{name} cannot be imported ({type(error).__name__}: {line}); pip install {install}"
        ) from error


def _torchvision(name: str, options: Mapping[str, Any]) -> Network:
    models = _package("torchvision.models", "torchvision")
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models())
    module = models.get_model(name, weights=None, **options)
    size = options.get("image_size", 299 if name == "inception_v3" else 224)
    return Network(module, (torch.randn(1, 3, size, size),))


def _timm(name: str, options: Mapping[str, Any]) -> Network:
    timm = _package("timm", '"weightspace[timm]"')
    if name not in timm.list_models():
        raise unknown("timm model", name, timm.list_models())
    module = timm.create_model(name, pretrained=False, **options)
    size = timm.data.resolve_model_data_config(module)["input_size"]
    return Network(module, (torch.randn(1, *size),))


def _open_clip(name: str, options: Mapping[str, Any]) -> Network:
    module: Any = build_clip(name, options=options)
    size = pixels_of(module).size
    text = torch.randint(1, module.vocab_size, (1, module.context_length))
    return Network(module, (torch.randn(1, 3, size, size), text))


def _transformers(name: str, options: Mapping[str, Any]) -> Network:
    transformers = _package("transformers", '"weightspace[transformers]"')
    folder = local_path(name, weights=False)
    if not (folder / "config.json").is_file():
        raise WeightspaceError(f"transformers:{name} needs a folder with a config.json; found none at {name}.")
    own_code = {"trust_remote_code": False}  # code shipped with a configuration runs only on the user's request
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **(own_code | dict(options)))
    config.use_cache = False
    listed = getattr(config, "architectures", None) or [""]
    builder = getattr(transformers, str(listed[0]), None)
    if isinstance(builder, type) and issubclass(builder, transformers.PreTrainedModel):
        module = builder(config)
    else:
        module = transformers.AutoModel.from_config(config, **own_code)
    return Network(module, _transformers_inputs(module, config))


def _transformers_inputs(module: nn.Module, config: Any) -> tuple[Any, ...]:
    """Return token ids, pixels, or both, in the order of the module's ``forward``."""
    text, vision = (getattr(config, part, None) or config for part in ("text_config", "vision_config"))
    makers: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: torch.randint(1, text.vocab_size, (1, 8)),
        "pixel_values": lambda: torch.randn(1, vision.num_channels, vision.image_size, vision.image_size),
    }
    names = list(inspect.signature(module.forward).parameters)
    wanted = [name for name in names[:2] if name in makers]
    if names[:1] == ["input_ids"] and not hasattr(config, "vision_config"):
        wanted = ["input_ids"]
    if not wanted:
        raise WeightspaceError(
            f"{type(module).__name__} takes {names[0] if names else 'no inputs'} first, for which there is no default; "
            "wrap it in your own function (file.py:callable) that returns (module, example_args)."
        )
    return tuple(makers[name]() for name in wanted)


#: Prefix on the command line -> builder.
_DOORS: Mapping[str, Callable[[str, Mapping[str, Any]], Network]] = dict(
    zip(LIBRARIES, (_torchvision, _timm, _open_clip, _transformers), strict=True)
)
