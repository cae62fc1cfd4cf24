"""Make the committed checkpoint of Megatron-LM's format ``torch_dist`` by its library, ``megatron-core``.

Run it by hand with megatron-core installed: ``python make_megatron.py``. Two processes save a column-parallel weight, a
replicated bias, an optimizer state and an object. The library asks for a GPU, which is stood in for here.
"""

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

HERE = Path(__file__).parent / "megatron"
WORLD = 2


def without_gpu() -> None:
    """Let tensors that are asked to be on a GPU be on the CPU."""
    torch.cuda.current_device = lambda: 0
    torch.cuda.synchronize = lambda *_: None
    make = torch.tensor

    def on_cpu(*values: Any, **options: Any) -> torch.Tensor:
        return make(*values, **{**options, "device": "cpu"})

    torch.tensor = on_cpu


def work(rank: int) -> None:
    """Save the part of one rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29535", RANK=str(rank), WORLD_SIZE=str(WORLD))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    without_gpu()
    saving: Any = import_module("megatron.core.dist_checkpointing")
    whole, bias = torch.arange(24.0).reshape(8, 3) / 8, torch.arange(4.0).bfloat16()
    part = whole.chunk(WORLD)[rank].clone()
    sharded, across = saving.ShardedTensor.from_rank_offsets, (0, rank, WORLD)
    state = {
        "weight": sharded("decoder.layers.mlp.weight", part, across),
        "bias": sharded("decoder.layers.mlp.bias", bias, replica_id=rank),
        "moment": sharded("optimizer.state.exp_avg.decoder.layers.mlp.weight", part.square(), across),
        "rng": saving.ShardedObject("rng_state", [1, 2], (1,), (0,), replica_id=rank),
        "iteration": 10,
    }
    os.chdir(HERE)  # the metadata name the folder as it is given
    saving.save(state, "iter_0000010")
    dist.destroy_process_group()


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    (HERE / "iter_0000010").mkdir(parents=True)
    spawn(work, nprocs=WORLD)
    (HERE / "latest_checkpointed_iteration.txt").write_text("10")
