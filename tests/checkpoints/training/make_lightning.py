"""Make the committed checkpoints of PyTorch Lightning, with hyperparameters of a user's class in them.

Run it by hand with Lightning installed: ``python make_lightning.py``.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent / "lightning"


class Config:
    """A user's configuration, which becomes an object of ``__main__`` in the checkpoints."""

    width = 3


def main() -> None:
    """Train four steps, and save every two."""
    lightning: Any = import_module("pytorch_lightning")

    class Network(lightning.LightningModule):
        """A linear layer that keeps its arguments as hyperparameters."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(config.width, 2)

        def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
            """Return the loss."""
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Return the optimizer."""
            return torch.optim.Adam(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    network = Network(Config())
    saving = lightning.callbacks.ModelCheckpoint(HERE, every_n_train_steps=2, save_top_k=-1, filename="{epoch}-{step}")
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=4, callbacks=[saving], default_root_dir=HERE, **settings)
    data: Any = torch.randn(8, 3)
    trainer.fit(network, torch.utils.data.DataLoader(data, batch_size=4))
    torch.save(dict(network.state_dict()), HERE / "last.pt")


if __name__ == "__main__":
    main()
