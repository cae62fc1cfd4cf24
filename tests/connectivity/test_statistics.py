import pytest
import torch
from torch import nn

from weightspace.connectivity import has_batchnorm_statistics, reset_batchnorm
from weightspace.errors import WeightspaceError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3))


def batches(count: int = 5, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 + 3 * torch.randn(size, 3, generator=generator) for _ in range(count)]


def run(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return module(batch)


def test_the_statistics_are_the_plain_average_over_the_batches() -> None:
    module = network()
    reset_batchnorm(module, batches(), run)
    means = torch.stack([batch.mean(0) for batch in batches()]).mean(0)
    variances = torch.stack([batch.var(0) for batch in batches()]).mean(0)
    assert torch.allclose(module[0].running_mean, means, atol=1e-5)
    assert torch.allclose(module[0].running_var, variances, rtol=1e-5)
    assert module[3].num_batches_tracked == 5


def test_a_second_reset_changes_nothing_so_that_the_old_statistics_do_not_matter() -> None:
    module = network()
    reset_batchnorm(module, batches(), run)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    reset_batchnorm(module, batches(), run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_modes_momenta_and_weights_are_as_before() -> None:
    module = network().train()
    module[0].eval()
    weights = {name: tensor.clone() for name, tensor in module.named_parameters()}
    reset_batchnorm(module, batches(), run)
    assert [part.training for part in module.modules()] == [True, False, True, True, True]
    assert (module[0].momentum, module[3].momentum) == (0.1, 0.3)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.named_parameters())


def test_modes_are_restored_when_the_forward_pass_fails() -> None:
    module = network().eval()
    with pytest.raises(RuntimeError):
        reset_batchnorm(module, [torch.ones(2, 7)], run)
    assert not any(part.training for part in module.modules())
    assert module[3].momentum == 0.3


def test_dropout_draws_nothing() -> None:
    module = network()
    before = torch.get_rng_state()
    reset_batchnorm(module, batches(), run)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_batches_are_refused() -> None:
    with pytest.raises(WeightspaceError, match="no batches"):
        reset_batchnorm(network(), [], run)


def test_a_network_without_statistics_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert not has_batchnorm_statistics(module)
    reset_batchnorm(module, [], run)
    assert has_batchnorm_statistics(network())
