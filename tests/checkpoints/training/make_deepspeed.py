"""Make the committed DeepSpeed checkpoints and the state dicts that DeepSpeed's own ``zero_to_fp32`` makes of them.

Run it by hand with DeepSpeed installed: ``DS_ACCELERATOR=cpu python make_deepspeed.py``. Two processes train a network
with a buffer, a frozen parameter and tied weights, in bfloat16 for stages 1 to 3.
"""

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

HERE = Path(__file__).parent / "deepspeed"
WORLD = 2


class Network(nn.Module):
    """A network whose sizes aren't multiples of the number of ranks, with a tied, a frozen and a buffered tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 3)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.linspace(0, 1, 3))
        self.register_buffer("count", torch.tensor(4))
        self.frozen.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a loss."""
        hidden = self.body(self.embed(tokens))
        return self.head(hidden).float().square().mean() + (self.frozen(hidden) * self.scale).float().mean()


def work(rank: int, stage: int) -> None:
    """Train and save on one rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533", RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ["WORLD_SIZE"] = str(WORLD)
    deepspeed: Any = import_module("deepspeed")
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    network = Network()
    decayed = [own for own in network.parameters() if own.requires_grad and own.ndim > 1]
    others = [own for own in network.parameters() if own.requires_grad and own.ndim < 2]
    config: dict[str, Any] = {
        "train_batch_size": 4,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": stage > 0},
    }
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=0.01)
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    for seed in range(2):
        loss = engine(torch.randint(7, (2, 3), generator=torch.Generator().manual_seed(10 * seed + rank)))
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(HERE / f"stage{stage}", tag="global_step2")


if __name__ == "__main__":
    zero_to_fp32: Any = import_module("deepspeed.utils.zero_to_fp32")
    for stage in (1, 2, 3):
        folder = HERE / f"stage{stage}"
        shutil.rmtree(folder, ignore_errors=True)
        spawn(work, (stage,), nprocs=WORLD)
        state = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(folder))
        torch.save(dict(state), HERE / f"stage{stage}.pt")
        for script in folder.glob("*.py"):
            script.unlink()
