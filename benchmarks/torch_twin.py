"""A plain PyTorch training step of the same network and method, to measure ours against. Only for benchmarks.

research: contiguous NCHW, and the attack's backward pass computes the parameters' gradients too, as the public
research code does. tuned: channels_last, input gradients only.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
import torch_networks

EPSILON, STEP_SIZE, WEIGHT = 8 / 255, 2 / 255, 0.1


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


def train_step(method: str, model: str, width: int, batch_size: int, mode: str, dtype: str) -> Callable[[], float]:
    """One step of training on a fixed random batch; returns its loss."""
    torch.manual_seed(0)
    net = network(model, width)
    layout = torch.channels_last if mode == "tuned" else torch.contiguous_format
    net = net.to(memory_format=layout)
    forward = with_maps(net)
    images = torch.rand(batch_size, 3, 32, 32).to(memory_format=layout)
    labels = torch.arange(batch_size) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    head = net.linear if hasattr(net, "linear") else net.fc

    def cam(maps):
        return torch.einsum("bchw,kc->bkhw", maps, F.relu(head.weight))

    def attack():
        net.eval()
        net.requires_grad_(mode == "research")
        with torch.no_grad():
            clean = cam(forward(images)[1])
        x = (images + torch.empty_like(images).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        for _ in range(7):
            x.requires_grad_()
            logits, maps = forward(x)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            if method == "infofeature":
                loss = loss + WEIGHT * (cam(maps) - clean).flatten(1).norm(dim=1).sum()
            if mode == "research":
                net.zero_grad()
                loss.backward()
                gradient = x.grad
            else:
                (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() + STEP_SIZE * gradient.sign()
            x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
        net.requires_grad_(True)
        return x

    def step():
        low = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
        with low:
            x = images if method == "standard" else attack()
            net.train()
            loss = F.cross_entropy(forward(x)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
