"""What linear regression would have found without training: the least-squares solution, as a check on the learnt one.

Checked by tests/training/test_closed_form.py.
"""

import numpy as np
from torch import nn

from training.architectures import Served
from training.data import DataSet
from training.errors import VerificationFailed
from training.recipes import Recipe
from training.report import Coefficient

# Of the largest coefficient: wide of where float32 gradients stop moving, near enough to tell a run that stopped early.
MAX_DIFFERENCE = 1e-3
SAME = 1e-6  # columns that differ by less than this share of themselves are the same one to float32


def coefficients(model: Served, data: DataSet) -> tuple[Coefficient, ...]:
    """One per feature and the intercept, in the target's unit for one standard deviation of the feature; () for a model
    that is not linear regression, and where features depend on each other, so that many solutions are equally good."""
    layers = [module for module in model.body.modules() if not list(module.children())]
    if data.source.labels or [type(layer) for layer in layers] != [nn.Flatten, nn.Linear]:
        return ()
    matrix = layers[1]
    assert isinstance(matrix, nn.Linear), "bug: checked above"
    learnt = [*matrix.weight.detach().double().cpu().numpy()[0], float(matrix.bias.item())]
    mean, deviation = np.array(data.source.mean), np.array(data.source.deviation)
    standard = (data.train_x.astype(np.float64) - mean) / deviation
    with_ones = np.hstack([standard, np.ones((len(standard), 1))])
    solution, _, rank, _ = np.linalg.lstsq(with_ones, data.train_y.astype(np.float64), rcond=SAME)
    if rank < with_ones.shape[1]:
        return ()
    names = (*(data.source.features or [f"feature {n}" for n in range(len(mean))]), "intercept")
    return tuple(
        Coefficient(name, float(ours), float(theirs))
        for name, ours, theirs in zip(names, learnt, solution, strict=True)
    )


def check_closed_form(found: tuple[Coefficient, ...], recipe: Recipe) -> dict[str, float]:
    """The largest difference as a metric, {} where there is nothing to compare or nothing to expect.

    Raises   VerificationFailed naming the coefficient that is farthest off
    """
    # A decayed solution is another one, and so is that of other items: the closed form sees those held out too.
    if not found or recipe.weight_decay or recipe.validation or recipe.limit is not None:
        return {}
    farthest = max(found, key=lambda one: abs(one.learnt - one.closed_form))
    difference = abs(farthest.learnt - farthest.closed_form)
    allowed = MAX_DIFFERENCE * max(abs(one.closed_form) for one in found)
    if not difference <= allowed:
        raise VerificationFailed(
            f"Training has not reached the least-squares solution: {farthest.feature} is {farthest.learnt:.4f} and the "
            f"closed form {farthest.closed_form:.4f}, more than {allowed:.2g} apart. Nothing was published. "
            "Train longer (--epochs) or with another --lr."
        )
    return {"closed_form_difference": difference}
