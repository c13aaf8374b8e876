"""One process or several: what `torchrun --nproc-per-node N -m training <recipe>` starts, seen from inside.

Every process holds the whole data set and takes its share of each batch; DistributedDataParallel adds the gradients.
nccl on GPUs, gloo elsewhere. Only the first process talks, writes and publishes. Without torchrun all of this is the
identity. Checked by tests/training/test_parallel.py.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
import torch.distributed.nn  # before there is a group: its functions take the one there is for a default, and keep it
from msgspec import Struct
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import DeviceUnavailable, Interrupted, RecipeInvalid
from training.recipes import Recipe


class World(Struct, frozen=True):
    """`rank` of `size` processes, computing on a `device` of its own."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, recipe: Recipe) -> int:
        """Items of a batch that are this process's. Raises RecipeInvalid where they cannot be shared evenly."""
        if recipe.batch_size % self.size:
            raise RecipeInvalid(
                f"batch_size {recipe.batch_size} cannot be shared evenly by {self.size} processes: choose a multiple."
            )
        return recipe.batch_size // self.size

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The others wait until the first process is through."""
        if self.size > 1 and not self.is_first:
            torch.distributed.barrier()
        try:
            yield
        finally:
            if self.size > 1 and self.is_first:
                torch.distributed.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def total(self, values: Tensor) -> Tensor:
        """Sums over all processes; `values` is left as it is."""
        if self.size == 1:
            return values
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed

    def any(self, flag: bool) -> bool:
        """Whether any process says so: all leave a loop in the same step, or the others would wait for ever."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor([float(flag)], device=self.device)).item())

    def of_first(self, value: float) -> float:
        """The first process's `value`, in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared.item())


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(rank=0, size=1, device=device)
        return
    if device.type == "cuda":
        here, there_are = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= there_are:
            raise DeviceUnavailable(
                f"process {here + 1} of this machine has no GPU of its own: use --nproc-per-node {there_are}, or "
                "--device cpu."
            )
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=10)
    )
    try:
        try:
            yield World(rank=torch.distributed.get_rank(), size=size, device=device)
        except Interrupted:  # in all of them, unlike other errors
            torch.distributed.barrier()
            raise
        # All leave together: one that closes its connections while another still works makes gloo abort that one.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
