"""Run under torchrun by test_parallel.py: train the tiny digits, check that all processes agree, save what came out.

two_processes.py FOLDER [STOP_AFTER_STEPS | resume]
"""

import sys
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.distributed

from training.architectures import build
from training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.data import DataSet, own_data
from training.errors import Interrupted
from training.loop import train
from training.parallel import World, joined
from training.recipes import MNIST_RECIPE, Recipe, changed

# No norm and no augmentation: two halves of a batch then give the gradient of the whole batch.
RECIPE = changed(
    MNIST_RECIPE,
    {"architecture": "mlp", "width": 16, "epochs": 3, "batch_size": 30, "precision": "fp32", "ema": 0.9}
    | {"optimizer": "sgd", "lr": 0.05, "early_epochs": 0, "validation": 0.1, "min_accuracy": 0}
    | dict.fromkeys(("rotate", "translate", "scale", "shear"), 0),
)


def tiny(recipe: Recipe = RECIPE) -> DataSet:
    with np.load(Path(__file__).parents[2] / "loadtests/samples/mnist.npz") as samples:
        images, labels = samples["images"], samples["labels"]
    parts = (images[:300], labels[:300]), (images[300:500], labels[300:500])
    return own_data("tiny", "Tiny digits", *parts, labels=tuple("0123456789"))


def agree(world: World, tensors: dict[str, torch.Tensor]) -> None:
    """Every process holds the same numbers, bit by bit."""
    for name, mine in tensors.items():
        theirs = [torch.empty_like(mine) for _ in range(world.size)]
        torch.distributed.all_gather(theirs, mine.contiguous())
        assert all(torch.equal(mine, other) for other in theirs), f"{name} differs between processes"


def run(folder: Path, stop_after: int | None, resume: Checkpoint | None) -> None:
    torch.set_num_threads(1)
    data = tiny()
    torch.manual_seed(RECIPE.seed)
    model = build(RECIPE, data)
    steps = 0

    with joined(torch.device("cpu")) as world:

        def stop() -> bool:
            nonlocal steps
            steps += 1
            agree(world, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            return world.is_first and steps == stop_after  # told to one process only

        try:
            trained = train(
                RECIPE,
                model,
                data,
                world,
                lambda progress: None,
                keep=lambda checkpoint: write_checkpoint(folder / "checkpoint.pt", checkpoint),
                resume=resume,
                stop=stop,
            )
        except Interrupted:
            return
        agree(world, dict(trained.model.state_dict()))
        if world.is_first:
            torch.save(trained.model.state_dict(), folder / "weights.pt")
            (folder / "history.json").write_bytes(msgspec.json.encode(trained.history))


def threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


if __name__ == "__main__":
    where, how = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    run(
        where,
        stop_after=int(how) if how and how != "resume" else None,
        resume=read_checkpoint(where / "checkpoint.pt") if how == "resume" else None,
    )
    assert not [name for name in threads() if "gloo" in name], "threads that can abort the process when it ends"
