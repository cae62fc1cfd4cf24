"""Temperature scaling of interpolated networks.

An interpolated network has smaller logits than its endpoints, so part of its loss is underconfidence rather than lack
of knowledge. Dividing the logits by a temperature fitted on the validation split separates the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.connectivity.linear_path import LinearPath, Statistics
from weightspace.connectivity.loss_curve import scored
from weightspace.errors import WeightspaceError
from weightspace.labels.calibration import best_temperature
from weightspace.reprs import brief
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads

_FITTED_ON: Split = "validation"


class Tempered(nn.Module):
    """A network whose output, a tensor of logits, is divided by a temperature."""

    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        self.module, self.temperature = module, temperature

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits of the network, divided by the temperature."""
        logits = self.module(*args, **kwargs)
        if not isinstance(logits, Tensor):
            raise WeightspaceError(f"A temperature divides a tensor of logits; the network returns {type(logits)}.")
        return logits / self.temperature


@brief
@dataclass(frozen=True)
class Temperature:
    """A fitted temperature and its effect on the loss.

    Attributes:
        value: dimensionless; below 1, the network was underconfident.
        loss: loss of the network as is, in nats.
        tempered_loss: loss of the network with its logits divided by the temperature, in nats.
        split: the data of the two losses; the fit uses the validation split.
    """

    value: float
    loss: float
    tempered_loss: float
    split: str


def fit_temperature(task: Task, network: nn.Module, *, split: Split = "test") -> Temperature:
    """Return the temperature with the lowest validation loss, and the losses without and with it.

    The network is run over the validation split for each of about thirty candidate temperatures.

    Args:
        task: scores the network; its loss must have one minimum in the temperature, as cross-entropy does.
        network: returns logits; not modified.
        split: data to report the losses on.

    Raises:
        WeightspaceError: the scores have no loss, or the network doesn't return a tensor.

    Source:
        Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """

    def loss(temperature: float) -> float:
        return scored(task, Tempered(network, temperature), _FITTED_ON)[0]

    with torch_threads(threads_of(task)):
        value = best_temperature(loss)
        before, after = (scored(task, module, split)[0] for module in (network, Tempered(network, value)))
    return Temperature(value, before, after, split)


def midpoint_temperature(
    task: Task, a: StateDict, b: StateDict, *, statistics: Statistics = "auto", split: Split = "test"
) -> Temperature:
    """Return the temperature of the midpoint of two networks, scored as in ``loss_curve``.

    Args:
        task: builds and scores the networks.
        a: weights at position 0.
        b: weights at position 1.
        statistics: as for ``loss_curve``.
        split: data to report the losses on.

    Raises:
        CheckpointError: the names or shapes of ``a`` or ``b`` differ from the network's.
        WeightspaceError: the scores have no loss, or the network doesn't return a tensor.
    """
    with torch_threads(threads_of(task)):
        network = LinearPath(task, a, b, statistics).at(0.5)
    return fit_temperature(task, network, split=split)
