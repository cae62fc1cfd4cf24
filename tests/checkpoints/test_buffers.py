"""Tensors that are no weights to average are told by their names and shapes."""

import pytest
from parametrized_networks import BOTH, SPECTRAL_NORMS, WEIGHT_NORMS, build
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from weightspace.checkpoints.buffers import (
    effective_name,
    find_parametrizations,
    holds_whole_numbers,
    is_counter,
    is_fixed,
    is_variance,
)
from weightspace.errors import WeightspaceError


def shapes(network: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "encoder.0."])
@pytest.mark.parametrize("kind", WEIGHT_NORMS)
def test_the_pairs_of_weight_norm_are_found(kind: str, prefix: str) -> None:
    make, _, weight = WEIGHT_NORMS[kind]
    result = find_parametrizations(shapes(build(make), prefix))
    (direction,) = result.weight_norms
    assert effective_name(direction) == f"{prefix}{weight}"
    assert {direction, *result.functions} == {
        name for name in shapes(build(make), prefix) if "_g" in name or "_v" in name
    } | {name for name in shapes(build(make), prefix) if "original" in name}
    assert not result.spectral_norms


@pytest.mark.parametrize("prefix", ["", "encoder.0."])
@pytest.mark.parametrize("kind", SPECTRAL_NORMS)
def test_the_vectors_of_spectral_norm_are_found(kind: str, prefix: str) -> None:
    result = find_parametrizations(shapes(build(SPECTRAL_NORMS[kind][0]), prefix))
    ((matrix, (norm,)),) = result.spectral_norms.items()
    assert effective_name(matrix) == f"{prefix}weight"
    assert (norm.left[-2:], (norm.right or "")[-2:]) == ("_u", "_v")
    assert not result.weight_norms


def test_spectral_norm_on_weight_norm_belongs_to_the_direction() -> None:
    result = find_parametrizations(shapes(build(BOTH[0])))
    assert list(result.weight_norms) == list(result.spectral_norms) == ["parametrizations.weight.original1"]
    assert result.functions == {f"parametrizations.weight.{end}" for end in ("original0", "1._u", "1._v")}


def test_the_vectors_of_a_generator_are_found() -> None:
    result = find_parametrizations(
        {"blocks.0.conv.weight": (6, 4, 3, 3), "blocks.0.conv.u0": (1, 6), "blocks.0.conv.sv0": (1,)}
    )
    assert result.functions == {"blocks.0.conv.u0", "blocks.0.conv.sv0"}


@pytest.mark.parametrize(
    "names",
    [
        {"att.time_maa_g": (1, 1, 8), "att.time_maa_v": (1, 1, 8)},
        {"att.x_g": (1, 1, 8), "att.x_v": (1, 1, 8)},
        {"w_g": (8, 8), "w_v": (8, 8)},
        {"gate_g": (8, 4), "gate_v": (8, 4, 3)},
        {"weight_g": (4, 1), "weight_v": (8, 3)},
        {"weight_u": (4,), "weight_v": (3,)},
        {"weight_orig": (4, 3), "weight_u": (5,), "weight_v": (3,)},
        {"parametrizations.weight.original0": (3, 2), "parametrizations.weight.original1": (2, 4)},
        {"parametrizations.weight.original0": (3, 1), "parametrizations.weight.original1": (3, 4)}
        | {"parametrizations.weight.original2": (2,)},
        {"proj_g.weight": (4, 4), "proj_v.weight": (4, 4)},
    ],
)
def test_other_tensors_with_such_names_are_ordinary_weights(names: dict[str, tuple[int, ...]]) -> None:
    assert not find_parametrizations(names).functions


def test_spectral_norm_on_something_unknown_is_refused() -> None:
    class Symmetric(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x + x.T

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    with pytest.raises(WeightspaceError, match=r"'parametrizations.weight.1._u' belongs to a spectral norm on top of"):
        find_parametrizations(shapes(parametrizations.spectral_norm(layer)))


@pytest.mark.parametrize(
    "name",
    [
        *("bn.num_batches_tracked", "model_ema.num_updates", "n_averaged", "state.0.step", "global_step", "iteration"),
        *("ema.step", "epoch", "iter", "last_epoch", "ema_num_updates", "train_steps", "running_mean_std.count"),
        *("_iter", "iter_num", "total_steps", "current_step", "num_calls", "tokens_seen", "ema.updates", "steps_done"),
        *("batch_count", "step_num", "counter", "num_batches", "bn/num_batches_tracked"),
    ],
)
def test_counters_are_known(name: str) -> None:
    assert is_counter(name, ())
    assert holds_whole_numbers(name, ())


@pytest.mark.parametrize(
    "name",
    ["step.weight", "counter.bias", "step_size", "steps_embedding", "model_ema.decay", "cls_tokens"],
)
def test_tensors_merely_named_like_a_counter_are_not_counters(name: str) -> None:
    assert not is_counter(name, ())


def test_a_list_of_steps_is_no_counter_and_a_list_of_counters_is() -> None:
    assert not is_counter("scheduler.steps", (3,))
    assert is_counter("stacked.num_batches_tracked", (3,))


@pytest.mark.parametrize(
    "name",
    [
        *("bn.running_var", "bn.moving_variance", "bn.moving_var", "running_std", "norm.running_variance"),
        *("bn.running_ivar", "norm.running_mean_sq", "bn/moving_variance", "obs_rms.var", "ret_rms._var"),
        *("running_mean_std.var", "obs_normalizer.std"),
    ],
)
def test_variances_are_known(name: str) -> None:
    assert is_variance(name)


@pytest.mark.parametrize("name", ["bn.running_mean", "running_var.weight", "var", "log_var", "rms.mean", "head.std"])
def test_other_statistics_are_no_variances(name: str) -> None:
    assert not is_variance(name)


@pytest.mark.parametrize(
    "name",
    [
        *("text_model.embeddings.position_ids", "embeddings.token_type_ids", "attn.relative_position_index"),
        *("attn.rel_pos_index", "layer.0.parametrizations.weight.0.base"),
    ],
)
def test_buffers_that_must_be_equal_in_all_models_are_known(name: str) -> None:
    assert is_fixed(name)


def test_whole_numbers_are_kept_in_many_dtypes() -> None:
    assert holds_whole_numbers("h.0.attn.bias", (1, 1, 8, 8))
    assert holds_whole_numbers("layers.0.blocks.1.attn_mask", (4, 16, 16))
    assert holds_whole_numbers("embeddings.position_ids", (1, 77))
    assert not holds_whole_numbers("h.0.attn.bias", (24,))
    assert not holds_whole_numbers("position_embedding.weight", (77, 8))
