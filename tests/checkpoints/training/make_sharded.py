"""Make the committed distributed checkpoints: four processes with FSDP2 and tensor parallelism, two with FSDP1.

Run it by hand (``python make_sharded.py``); a CPU suffices. Beside each folder is the full state dict.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp
from torch.multiprocessing.spawn import spawn

HERE = Path(__file__).parent / "sharded"


def network() -> nn.Module:
    """Return a network whose sizes don't divide evenly, with a buffer and tied weights' worth of layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 4, bias=False))
    return net.to(torch.float32)


def trained(net: nn.Module) -> torch.optim.Optimizer:
    """Take one step of Adam."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    torch.manual_seed(1)
    net(torch.randn(8, 6)).sum().backward()
    optimizer.step()
    return optimizer


def fsdp2(rank: int) -> None:
    """Save a network with FSDP2 over two processes and column- and row-parallel layers over two more."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5))
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=mesh["dp"])
    save(rank, net, trained(net), "fsdp2")


def fsdp1(rank: int) -> None:
    """Save a network with FSDP1 and its sharded state dict."""
    from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

    net = Fsdp(network(), device_id=torch.device("cpu"), use_orig_params=True)
    save(rank, net, trained(net), "fsdp1")


def save(rank: int, net: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Save model and optimizer, sharded, and the full model beside them."""
    model, optim = get_state_dict(net, optimizer)
    shutil.rmtree(HERE / name, ignore_errors=True) if rank == 0 else None
    dist.barrier()
    save_dcp({"model": model, "optim": optim, "step": torch.tensor(1)}, checkpoint_id=HERE / name)
    full, _ = get_state_dict(net, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(dict(full), HERE / f"{name}.pt")


def work(rank: int, world: int, name: str) -> None:
    """Run one process."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29531")
    dist.init_process_group("gloo", rank=rank, world_size=world)
    {"fsdp1": fsdp1, "fsdp2": fsdp2}[name](rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name, world in (("fsdp2", 4), ("fsdp1", 2)):
        if len(sys.argv) == 1 or name in sys.argv:
            spawn(work, (world, name), nprocs=world)
