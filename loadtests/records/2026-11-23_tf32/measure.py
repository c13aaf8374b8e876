"""How far TF32 moves the answers of mnist/1: every factor of every product rounded to 10 bits of mantissa, on a CPU."""

import numpy as np
import torch

from training.architectures import build
from training.recipes import MNIST_RECIPE


def rounded(values):
    """float32 to the nearest with 10 bits of mantissa, as a tensor core reads it."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def load():
    model = build(MNIST_RECIPE).eval()
    model.load_state_dict(torch.load("models/mnist/1/checkpoint.pt", weights_only=True))
    return model


images = torch.from_numpy(np.load("loadtests/samples/mnist.npz")["images"])
exact, coarse = load(), load()
for module in coarse.modules():
    if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
        module.weight.data = rounded(module.weight.data)
        module.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs)))
with torch.inference_mode():
    for name, ours, theirs in zip(("logits", "probabilities"), exact(images), coarse(images)):
        print(f"{name}: largest {ours.abs().max():.3f}, moved by at most {(ours - theirs).abs().max():.4f}")
