"""Make the committed FSDP folders of accelerate: sharded by DCP and a full state dict, of FSDP 1 and FSDP 2.

Run it by hand (``python make_accelerate.py``); accelerate 1.15.0 on a CPU made the files. Two processes save a
model, in one folder also its optimizer, with accelerate's own functions. Beside the folders is the full state dict.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import save_fsdp_model, save_fsdp_optimizer
from make_sharded import network, trained
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.multiprocessing.spawn import spawn

HERE = Path(__file__).parent / "accelerate"
WORLD = 2

#: Folder -> version of FSDP, the kind of state dict, and whether it is saved as DCP.
FOLDERS: dict[str, tuple[int, str, bool]] = {
    "fsdp1-sharded": (1, "SHARDED_STATE_DICT", True),
    "fsdp1-full": (1, "FULL_STATE_DICT", True),
    "fsdp2-sharded": (2, "SHARDED_STATE_DICT", True),
    "fsdp2-full": (2, "FULL_STATE_DICT", True),
    "fsdp2-ranks": (2, "SHARDED_STATE_DICT", False),
    "fsdp1-local": (1, "LOCAL_STATE_DICT", True),
}


def work(rank: int, name: str) -> None:
    """Save on one rank."""
    version, kind, use_dcp = FOLDERS[name]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29537", RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(WORLD), ACCELERATE_USE_CPU="true")
    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type=kind, cpu_offload=True)
    net: Any = network()
    if version == 1:
        net = FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=True)
        plugin.set_state_dict_type(kind)
    else:
        fully_shard(net)
    optimizer = trained(net)
    save_fsdp_model(plugin, accelerator, net, str(HERE / name), use_dcp=use_dcp)
    if name == "fsdp2-sharded":
        save_fsdp_optimizer(plugin, accelerator, optimizer, net, str(HERE / name))
    full = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(dict(full), HERE / f"{name}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    for name in FOLDERS:
        (HERE / name).mkdir(parents=True)
        spawn(work, (name,), nprocs=WORLD)
