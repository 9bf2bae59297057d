"""Plain PyTorch training steps and evaluations that do the same work, as a baseline for the benchmarks.

research: contiguous NCHW, and the attack's backward pass computes the parameters' gradients too, as the public
research code does. tuned: channels_last, input gradients only. compiled: tuned, and the network by torch.compile. On
a GPU where there is one, with cuDNN's choice by timing.
"""

import pathlib
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
import torch_networks

EPSILON, STEP_SIZE, WEIGHT = 8 / 255, 2 / 255, 0.1


class Twin(NamedTuple):
    """A network and a batch."""

    net: torch.nn.Module
    forward: Callable  # images -> (logits, what is pooled)
    images: torch.Tensor
    labels: torch.Tensor


def network(name: str, width: int) -> torch.nn.Module:
    """The public classes: resnet18, or wrn_D_W."""
    if name == "resnet18":
        return torch_networks.resnet18(width, 10)
    depth, factor = (int(part) for part in name.split("_")[1:])
    return torch_networks.WideResNet(depth, factor, width, 10, sub_block1=False, buffers=False)


def with_maps(net: torch.nn.Module) -> Callable:
    """images -> (logits, what is pooled), by a hook on the layer before the pooling."""
    seen = []
    layer = net.layer4 if hasattr(net, "layer4") else net.bn1
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def forward(images):
        logits = net((images - 0.5) / 0.5)
        return logits, F.relu(seen.pop())

    return forward


def create(model: str, width: int, batch_size: int, mode: str) -> Twin:
    """The network with a fixed random batch, in the memory layout of `mode`."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.contiguous_format if mode == "research" else torch.channels_last
    torch.backends.cudnn.benchmark = True
    net = network(model, width).to(device, memory_format=layout)
    images = torch.rand(batch_size, 3, 32, 32).to(device, memory_format=layout)
    forward = with_maps(net)
    forward = torch.compile(forward) if mode == "compiled" else forward
    return Twin(net, forward, images, torch.arange(batch_size, device=device) % 10)


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Carlini & Wagner's loss with confidence 50, summed."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    right, wrong = logits[own], logits.masked_fill(own, -1e4).amax(1)
    return -F.relu(right - wrong + 50).sum()


def attack(
    twin: Twin, mode: str, num_steps: int, step_size: float = STEP_SIZE, *,
    loss: Callable | None = None, weight: float = 0.0, random_start: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Signed ascent of `loss` (cross-entropy) plus `weight` times the distance of the class activation maps."""
    net, forward, images, labels = twin
    loss = loss or partial(F.cross_entropy, reduction="sum")
    head = net.linear if hasattr(net, "linear") else net.fc

    def cam(maps):
        return torch.einsum("bchw,kc->bkhw", maps, F.relu(head.weight))

    net.eval()
    net.requires_grad_(mode == "research")
    if weight:
        with torch.no_grad():
            clean = cam(forward(images)[1])
    x = images
    if random_start:
        x = (images + torch.empty_like(images).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        logits, maps = forward(x)
        value = loss(logits, labels)
        if weight:
            value = value + weight * (cam(maps) - clean).flatten(1).norm(dim=1).sum()
        if mode == "research":
            net.zero_grad()
            value.backward()
            gradient = x.grad
        else:
            (gradient,) = torch.autograd.grad(value, x)
        x = x.detach() + step_size * gradient.sign()
        x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
    net.requires_grad_(True)
    return x


def evaluation(model: str, width: int, batch_size: int, mode: str) -> dict[str, Callable[[], int]]:
    """{name: attack a batch, count the correct} for the paper's five evaluations."""
    twin = create(model, width, batch_size, mode)
    steps = partial(attack, twin, mode)
    attacks = {
        "clean": lambda: twin.images,
        "fgsm": lambda: steps(1, EPSILON, random_start=False),
        "pgd7": lambda: steps(7),
        "pgd20": lambda: steps(20),
        "cw20": lambda: steps(20, loss=margin),
    }

    def correct(perturb):
        x = perturb()
        twin.net.eval()
        with torch.no_grad():
            return int((twin.forward(x)[0].argmax(1) == twin.labels).sum())

    return {name: partial(correct, perturb) for name, perturb in attacks.items()}


def train_step(method: str, model: str, width: int, batch_size: int, mode: str, dtype: str) -> Callable[[], float]:
    """One step of training on a fixed random batch; returns its loss."""
    twin = create(model, width, batch_size, mode)
    optimizer = torch.optim.SGD(twin.net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    weight = WEIGHT if method == "infofeature" else 0.0

    def step():
        with torch.autocast(twin.images.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            x = twin.images if method == "standard" else attack(twin, mode, 7, weight=weight)
            twin.net.train()
            loss = F.cross_entropy(twin.forward(x)[0], twin.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
