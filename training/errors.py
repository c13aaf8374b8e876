"""What can go wrong between a recipe and a published version; the message says what to do.

TrainingError
├── DataUnavailable        neither in the cache nor downloadable
├── DataDamaged            there, but not the official arrays
├── RecipeInvalid          a field, or two together, that no run can be made of
├── CheckpointDamaged      nothing a run can go on from
├── DeviceUnavailable      asked for a device this machine lacks
├── Interrupted            told to stop; a checkpoint is there to go on from
├── Diverged               the loss is no longer a number
├── VerificationFailed     the exported graph is not the trained model, or not good enough
├── VersionExists          a published version is never overwritten
├── ModelUnsuited          an ONNX file that the service could not serve
├── KeyUnsuited            a file that is no key to sign with, or no place for one
└── VersionUnknown         no such version, or not one that this can be done with

`__main__` prints the message alone and exits with `exit_code`: 2 where the call was wrong, 1 where the result is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrainingError(Exception):
    exit_code = 1


class DataUnavailable(TrainingError):
    exit_code = 2


class DataDamaged(TrainingError):
    exit_code = 2


class RecipeInvalid(TrainingError):
    exit_code = 2


class CheckpointDamaged(TrainingError):
    exit_code = 2


class Interrupted(TrainingError):
    """`run` is the folder of the checkpoint to go on from."""

    exit_code = 130

    def __init__(self, message: str, run: Path | None = None) -> None:
        super().__init__(message)
        self.run = run


class DeviceUnavailable(TrainingError):
    exit_code = 2


class Diverged(TrainingError):
    pass


class VerificationFailed(TrainingError):
    pass


class VersionExists(TrainingError):
    exit_code = 2


class VersionUnknown(TrainingError):
    exit_code = 2


class ModelUnsuited(TrainingError):
    exit_code = 2


class KeyUnsuited(TrainingError):
    exit_code = 2


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of writing `path` names it: that of a full disk names nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
