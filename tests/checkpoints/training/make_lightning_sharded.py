"""Make the committed folder that PyTorch Lightning saves with sharded weights, by its strategy for FSDP2.

Run it by hand with Lightning installed (``python make_lightning_sharded.py``); a CPU suffices, where its strategy for
FSDP1, which saves folders of the same kind, needs a GPU. Beside the folder is the full state dict.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

HERE = Path(__file__).parent / "lightning-sharded"


def main() -> None:
    """Train two steps in two processes, and save."""
    lightning: Any = import_module("pytorch_lightning")
    strategies: Any = import_module("pytorch_lightning.strategies")

    class Network(lightning.LightningModule):
        """Layers whose sizes don't divide evenly."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 5, bias=False))

        def configure_model(self) -> None:
            """Shard the layers."""
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
            """Return the loss."""
            return self.layers(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Return the optimizer."""
            return torch.optim.Adam(self.parameters(), lr=0.1)

    network = Network()
    strategy = strategies.ModelParallelStrategy(2, 1, process_group_backend="gloo")
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=2, strategy=strategy, enable_checkpointing=False, **settings)
    data: Any = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    trainer.fit(network, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(HERE / "step=2.ckpt")
    full = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if trainer.is_global_zero:
        torch.save(dict(full), HERE / "full.pt")


if __name__ == "__main__":
    main()
