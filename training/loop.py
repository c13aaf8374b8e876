"""The training loop: one function, seeded, from an untrained network and a data set to a trained one and its history.

    Items ──batch of indices──► items on the device ──augment──► scores ──► loss ──► gradients ──► step ──► averages

The whole set lives on the device; a step is an index and arithmetic, with nothing to wait for. Each step seeds torch's
generators with (seed, step, process), so what a step does depends on the weights and its number alone, and a run that
was stopped goes on to the same weights. The test set is not looked at here, not even to pick an epoch: the number in
the manifest is measured once, afterwards. Checked by tests/training/test_loop.py and test_resume.py.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from training.architectures import Served, to_pixels
from training.augment import AlternatingFlip, augmentation
from training.checkpoint import Checkpoint
from training.data import DataSet, on_device
from training.device import mixed_precision, prepare
from training.errors import CheckpointDamaged, Diverged, Interrupted, RecipeInvalid
from training.optimize import Average, LossFunction, Schedule, loss_function, optimizer_of
from training.parallel import World
from training.recipes import Recipe

# Reading the loss waits for the device; every 20 steps it seldom does, and a divergence is still seen at once.
STEPS_BETWEEN_REPORTS = 20
ITEMS_AT_ONCE = 500
SECONDS_BETWEEN_CHECKPOINTS = 10.0  # for epochs of milliseconds, where writing would take longer than training
MOST_RECORDS = 200  # of a history: enough to draw a curve


class Progress(Struct, frozen=True):
    """Where the run stands. loss and accuracy are means over this epoch's augmented training items so far, the
    validation ones over the held-out part; accuracy is None where the target is a number."""

    epoch: int
    items: int
    items_in_all: int
    loss: float
    accuracy: float | None
    items_per_s: float
    learning_rate: float
    ends_epoch: bool
    validation_loss: float | None = None
    validation_accuracy: float | None = None


class Trained(Struct, frozen=True):
    """`model` on the CPU, in evaluation mode; `history` one record per epoch, or MOST_RECORDS of them; `device` the
    kind that trained it; `source` the commits it was trained at."""

    model: Served
    history: tuple[Progress, ...]
    device: str
    seconds: float
    source: tuple[str, ...]


class Items(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Items and targets on the device, fetched a batch of indices at a time: (items, targets, indices)."""

    def __init__(self, items: Tensor, targets: Tensor) -> None:
        self.items = items
        self.targets = targets

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.tensor(indices).to(self.items.device, non_blocking=True)
        return self.items[chosen], self.targets[chosen], chosen


class Scores(nn.Module):
    """A model's training path as a `forward`, which DistributedDataParallel and torch.compile want."""

    def __init__(self, model: Served) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor) -> Tensor:
        return self.model.scores(items)


def train(
    recipe: Recipe,
    model: Served,
    data: DataSet,
    world: World,
    watch: Callable[[Progress], None],
    *,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
    source: str = "unknown",
) -> Trained:
    """Train `model` in place.

    watch    called every 20 steps and at the end of each epoch, in the first process only; `keep` likewise
    keep     called with what `resume` takes: after an epoch, unless the last is not SECONDS_BETWEEN_CHECKPOINTS old,
             after the last one, and before Interrupted
    stop     asked after each step
    source   the commit, noted in the checkpoint
    Raises   Diverged as soon as a reported loss is not finite; Interrupted once `stop` says so
    """
    run = Run(recipe, model, data, world, source)
    if resume is not None:
        run.restore(resume)
    try:
        while run.epoch < recipe.epochs and not run.is_stalled():
            for batch in run.batches():
                run.take_step(*batch)
                if run.step % STEPS_BETWEEN_REPORTS == 0 and run.step < run.steps:
                    run.report(watch, ends_epoch=False)
                if world.any(stop()):
                    run.save(keep)
                    raise Interrupted(f"stopped in epoch {run.epoch + 1} of {recipe.epochs}, after step {run.step}")
            run.finish_epoch(watch)
            run.save_now_and_then(keep)
    finally:
        # DistributedDataParallel holds the process group. A traceback would hold this frame and both, and gloo's
        # threads, which end with the group, abort the process when they outlive the interpreter.
        del run.scores
    return run.result()


class Run:
    """What changes while training; `train` is its only user."""

    def __init__(self, recipe: Recipe, model: Served, data: DataSet, world: World, source: str) -> None:
        device = world.device
        prepare(recipe, device)
        self.recipe, self.data, self.world = recipe, data, world
        self.loss_of: LossFunction = loss_function(recipe, data.source)
        training, self.held_out = split(recipe, data, device)
        self.training = training
        self.model: Served = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub
        scores = Scores(self.model)
        self.scores = world.wrap(torch.compile(scores) if recipe.compile else scores)  # type: ignore[arg-type]  # a module
        self.sampler: DistributedSampler[Any] = DistributedSampler(
            training, num_replicas=world.size, rank=world.rank, seed=recipe.seed
        )
        self.share = world.share(recipe)
        self.steps = math.ceil(len(self.sampler) / self.share)
        self.optimizer = optimizer_of(recipe, self.model)
        self.schedule = Schedule(recipe, self.optimizer, self.steps)
        self.average = Average(self.model, recipe.ema) if recipe.ema else None
        self.autocast, half = mixed_precision(recipe, data.source, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.alternate = AlternatingFlip(len(training), recipe.seed, device) if recipe.flip == "alternating" else None
        self.sources = [source]
        self.history: list[Progress] = []
        self.best: dict[str, Any] | None = None  # Any: a loss, an epoch and a state_dict
        self.seconds_before = 0.0
        self.started_at = self.saved_at = time.monotonic()
        self.items_here = 0
        self.epoch = self.step = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What is left of this epoch."""
        self.sampler.set_epoch(self.epoch)
        self.augment = augmentation(self.recipe, self.data.source, self.epoch)
        chosen = BatchSampler(self.sampler, self.share, drop_last=False)
        left = list(itertools.islice(chosen, self.step, None))
        return iter(DataLoader(self.training, batch_sampler=left, collate_fn=lambda batch: batch))

    def take_step(self, items: Tensor, targets: Tensor, indices: Tensor) -> None:
        """One optimizer step on raw items, as the data set holds them."""
        number = self.epoch * self.steps + self.step
        torch.manual_seed(((self.recipe.seed * 1_000_003 + number) * 8191 + self.world.rank) % 2**63)
        items = as_floats(items)
        if self.alternate is not None:
            items = self.alternate(items, indices, self.epoch)
        items = self.augment(items)
        if items.ndim == 4:
            items = items.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            scores = self.scores(items)
        scores = scores.float()
        loss = self.loss_of(scores, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(loss)
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.after_step()
        if self.average is not None:
            self.average.update(self.model)
        right = (scores.argmax(dim=1) == targets).sum() if self.data.source.labels else torch.zeros_like(loss)
        number_of = torch.full_like(self.sums[0], len(targets))
        self.sums += torch.stack([loss.detach().double() * len(targets), right.double(), number_of])
        self.items_here += len(targets) * self.world.size
        self.step += 1

    def backward(self, loss: Tensor) -> None:
        """Raises RecipeInvalid where the network cannot be trained with --deterministic."""
        try:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch has no types here
        except RuntimeError as error:
            if not self.recipe.deterministic or "deterministic" not in str(error):
                raise
            reason = str(error).partition(",")[0]
            raise RecipeInvalid(f"--deterministic with {self.recipe.architecture} on this device: {reason}.") from error

    def report(self, watch: Callable[[Progress], None], ends_epoch: bool) -> Progress:
        """Tell `watch` where the run stands. Raises Diverged."""
        loss, right, items = self.world.total(self.sums).tolist()
        validation_loss, validation_accuracy = self.score_held_out() if ends_epoch else (None, None)
        whole = self.steps * self.share * self.world.size
        progress = Progress(
            epoch=self.epoch + 1,
            items=self.epoch * len(self.training) + min(int(items), len(self.training)),
            items_in_all=self.recipe.epochs * len(self.training),
            loss=loss / items,
            accuracy=right / items if self.data.source.labels else None,
            items_per_s=self.items_here / (time.monotonic() - self.started_at),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            ends_epoch=ends_epoch,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
        )
        assert items <= whole, "bug: more items than the epoch has"
        refuse_divergence(self.recipe, progress)
        if self.world.is_first:
            watch(progress)
        return progress

    def finish_epoch(self, watch: Callable[[Progress], None]) -> None:
        progress = self.report(watch, ends_epoch=True)
        every = math.ceil(self.recipe.epochs / MOST_RECORDS)
        if self.history and self.history[-1].epoch % every:  # the last epoch is always there, until another follows
            self.history.pop()
        self.history.append(progress)
        self.schedule.after_epoch(progress.validation_loss)
        self.note_best(progress)
        self.epoch, self.step = self.epoch + 1, 0
        self.sums.zero_()

    def note_best(self, progress: Progress) -> None:
        if not self.recipe.patience or progress.validation_loss is None:
            return
        if self.best is None or progress.validation_loss < self.best["loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.candidate().state_dict().items()}
            self.best = {"loss": progress.validation_loss, "epoch": self.epoch + 1, "weights": weights}

    def is_stalled(self) -> bool:
        """No progress on the held-out part for `patience` epochs."""
        return self.best is not None and self.epoch - int(self.best["epoch"]) >= self.recipe.patience

    def candidate(self) -> Served:
        """What would be published now: the averaged weights where there are some."""
        return self.model if self.average is None else self.average.module

    def score_held_out(self) -> tuple[float | None, float | None]:
        """Loss and accuracy, the same in every process; None without a held-out part."""
        if self.held_out is None:
            return None, None
        model = self.candidate()
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            parts = torch.split(self.held_out.items, ITEMS_AT_ONCE)
            scores = torch.cat([model.scores(as_floats(part)) for part in parts])
            loss = self.loss_of(scores, self.held_out.targets).item()
            right = (scores.argmax(dim=1) == self.held_out.targets).float().mean().item()
        model.train(was_training)
        loss, right = self.world.of_first(loss), self.world.of_first(right)
        return loss, right if self.data.source.labels else None

    def save_now_and_then(self, keep: Callable[[Checkpoint], None]) -> None:
        is_over = self.epoch == self.recipe.epochs or self.is_stalled()
        is_due = time.monotonic() - self.saved_at >= SECONDS_BETWEEN_CHECKPOINTS
        if is_over or self.world.any(is_due):  # any, because all processes add up what is saved
            self.save(keep)
            self.saved_at = time.monotonic()

    def save(self, keep: Callable[[Checkpoint], None]) -> None:
        sums = self.world.total(self.sums).tolist()
        if not self.world.is_first:
            return
        keep(
            Checkpoint(
                recipe=self.recipe,
                dataset_sha256=self.data.source.sha256,
                epoch=self.epoch,
                step=self.step,
                seconds=self.seconds(),
                sums=sums,
                history=[msgspec.to_builtins(progress) for progress in self.history],
                parts={name: part.state_dict() for name, part in self.parts().items()},
                source=self.sources,
                processes=self.world.size,
                best=self.best,
            )
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointDamaged where it belongs to another recipe or data set."""
        for what, theirs, ours in (
            ("recipe", checkpoint.recipe, self.recipe),
            ("data set", checkpoint.dataset_sha256, self.data.source.sha256),
            ("number of processes", checkpoint.processes, self.world.size),
        ):
            if theirs != ours:
                raise CheckpointDamaged(f"The checkpoint belongs to another {what} ({theirs}), not to {ours}.")
        try:
            for name, part in self.parts().items():
                part.load_state_dict(checkpoint.parts[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointDamaged(f"The checkpoint does not fit the recipe's network: {error}") from error
        self.epoch, self.step, self.best = checkpoint.epoch, checkpoint.step, checkpoint.best
        self.seconds_before = checkpoint.seconds
        self.history = [msgspec.convert(record, Progress) for record in checkpoint.history]
        self.sources = [*dict.fromkeys([*checkpoint.source, *self.sources])]
        if self.world.is_first:  # the sums of all processes: adding them in each would count them several times
            self.sums += torch.tensor(checkpoint.sums, dtype=torch.float64, device=self.world.device)

    def parts(self) -> dict[str, Any]:  # Any: each has state_dict and load_state_dict, and nothing else in common
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        return parts if self.average is None else parts | {"average": self.average}

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started_at

    def result(self) -> Trained:
        model = self.candidate()
        if self.best is not None:
            model.load_state_dict(self.best["weights"])
        return Trained(
            model=model.cpu().eval(),
            history=tuple(self.history),
            device=self.world.device.type,
            seconds=self.seconds(),
            source=tuple(self.sources),
        )


def as_floats(items: Tensor) -> Tensor:
    """Images uint8 [n, h, w, c] → float32 [n, c, h, w] in 0..255; rows as they are."""
    return to_pixels(items) if items.ndim == 4 else items


def split(recipe: Recipe, data: DataSet, device: torch.device) -> tuple[Items, Items | None]:
    """The training items, and the held-out part where the recipe wants one; which items is drawn from the seed."""
    items, targets = on_device(data.train_x, device), on_device(data.train_y, device)
    if data.source.labels:
        targets = targets.long()
    held = round(recipe.validation * len(items))
    if not held:
        return Items(items, targets), None
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(recipe.seed)).to(device)
    return Items(items[order[held:]], targets[order[held:]]), Items(items[order[:held]], targets[order[:held]])


def refuse_divergence(recipe: Recipe, progress: Progress) -> None:
    if not math.isfinite(progress.loss):
        raise Diverged(
            f"The loss is {progress.loss} after {progress.items} items, in epoch {progress.epoch}: training diverged. "
            f"Lower the learning rate (--lr, now {recipe.lr:g}), lengthen its warm-up (--warm-up, now "
            f"{recipe.warm_up:g}) or limit the gradient (--clip-norm)."
        )
