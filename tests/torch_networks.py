"""The public networks in plain PyTorch, written for the tests after their descriptions."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Post-activation block."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        change = stride != 1 or inputs != outputs
        project = [conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)] if change else []
        self.shortcut = nn.Sequential(*project)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activated: bool):
        super().__init__()
        self.activated = activated
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        a = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(a if self.activated else x)
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + x


class ResNet(nn.Module):
    """`normed`: the BatchNorm outside the blocks, bn1 after the stem, bn at the end, or none."""

    def __init__(self, block, width: int, classes: int, normed: str | None):
        super().__init__()
        widths, self.normed = [width, width, 2 * width, 4 * width, 8 * width], normed
        self.conv1 = conv(3, width, 3)
        for s in range(1, 5):
            first = block(widths[s - 1], widths[s], 1 if s == 1 else 2)
            setattr(self, f"layer{s}", nn.Sequential(first, block(widths[s], widths[s], 1)))
        if normed:
            setattr(self, normed, nn.BatchNorm2d(width if normed == "bn1" else widths[4]))
        self.linear = nn.Linear(widths[4], classes)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(self.bn1(x)) if self.normed == "bn1" else x
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.relu(self.bn(x)) if self.normed == "bn" else x
        return self.linear(x.mean((2, 3)))


def resnet18(width: int, classes: int) -> nn.Module:
    return ResNet(Block, width, classes, "bn1")


def preact_resnet18(width: int, classes: int, *, final_norm: bool, activated: bool) -> nn.Module:
    block = lambda inputs, outputs, stride: PreActBlock(inputs, outputs, stride, activated)  # noqa: E731
    return ResNet(block, width, classes, "bn" if final_norm else None)


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        x = x if self.convShortcut is None else self.convShortcut(a)
        return x + self.conv2(F.relu(self.bn2(self.conv1(a))))


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, count: int):
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """With `buffers`, it normalises by mu and sigma, as RobustBench's classes do."""

    def __init__(self, depth, factor, stem, classes, *, sub_block1, buffers):
        super().__init__()
        widths, count = [stem, *(stem * factor * m for m in (1, 2, 4))], (depth - 4) // 6
        self.conv1 = conv(3, stem, 3)
        self.block1 = Stage(widths[0], widths[1], 1, count)
        if sub_block1:
            self.sub_block1 = Stage(widths[0], widths[1], 1, count)
        self.block2 = Stage(widths[1], widths[2], 2, count)
        self.block3 = Stage(widths[2], widths[3], 2, count)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)
        if buffers:
            self.register_buffer("mu", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
            self.register_buffer("sigma", torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1))

    def forward(self, x):
        if hasattr(self, "mu"):
            x = (x - self.mu) / self.sigma
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def wide_resnet(width: int, classes: int, *, sub_block1=False, buffers=False) -> nn.Module:
    return WideResNet(16, 2, width, classes, sub_block1=sub_block1, buffers=buffers)


# DeepMind's. Convolutions of stride 2 pad the high sides only.


class Padded(nn.Conv2d):
    """A 3x3 convolution without bias; at stride 2 padded by 0 and 1."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, 3, stride, bias=False)

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1) if self.stride[0] == 1 else (0, 1, 0, 1)))


class DeepMindWideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation):
        super().__init__()
        self.batchnorm_0, self.conv_0 = nn.BatchNorm2d(inputs), Padded(inputs, outputs, stride)
        self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(outputs), Padded(outputs, outputs, 1)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.activation = activation

    def forward(self, x):
        a = self.activation(self.batchnorm_0(x))
        x = x if self.shortcut is None else self.shortcut(a)
        return x + self.conv_1(self.activation(self.batchnorm_1(self.conv_0(a))))


class DeepMindPreActBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation):
        super().__init__()
        self.batchnorm_0, self.conv_2d_1 = nn.BatchNorm2d(inputs), Padded(inputs, outputs, stride)
        self.batchnorm_1, self.conv_2d_2 = nn.BatchNorm2d(outputs), Padded(outputs, outputs, 1)
        self.shortcut = None if stride == 1 and inputs == outputs else Padded(inputs, outputs, stride)
        self.activation = activation

    def forward(self, x):
        y = self.conv_2d_1(self.activation(self.batchnorm_0(x)))
        x = x if self.shortcut is None else self.shortcut(x)
        return x + self.conv_2d_2(self.activation(self.batchnorm_1(y)))


class DeepMindGroup(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.block = nn.Sequential(*blocks)

    def forward(self, x):
        return self.block(x)


class DeepMindNetwork(nn.Module):
    """WideResNet-10-2 or -16-2, or PreAct-ResNet-18; with `buffers` as RobustBench's classes, else as DeepMind's."""

    MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10

    def __init__(self, wide: bool, width: int, classes: int, activation, *, buffers: bool, blocks: int = 1):
        super().__init__()
        self.activation, self.wide = activation, wide
        stem, block = conv(3, width, 3), DeepMindWideBlock if wide else DeepMindPreActBlock
        widths = [width, 2 * width, 4 * width, 8 * width] if wide else [width, width, 2 * width, 4 * width, 8 * width]
        groups = [
            [
                block(inputs, outputs, 1 if not s else 2, activation),
                *(block(outputs, outputs, 1, activation) for _ in range(blocks - 1)),
            ]
            for s, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        ]
        if wide:
            self.init_conv, self.layer = stem, nn.Sequential(*(DeepMindGroup(*group) for group in groups))
        else:
            self.conv_2d = stem
            for s, group in enumerate(groups):
                setattr(self, f"layer_{s}", nn.Sequential(*group))
        self.batchnorm, self.logits = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], classes)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.MEAN, self.STD))
        if buffers:
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)
        else:
            self.mean, self.std = mean, std

    def forward(self, x):
        x = (x - self.mean) / self.std
        if self.wide:
            x = self.layer(self.init_conv(x))
        else:
            x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
        return self.logits(self.activation(self.batchnorm(x)).mean((2, 3)))


def randomize(network: nn.Module) -> None:
    """Gives every BatchNorm statistics, scale and shift as after some training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)


def run(network: nn.Module, images: np.ndarray, *, train: bool = False) -> np.ndarray:
    """The logits of NHWC images."""
    with torch.no_grad():
        return network.train(train)(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
