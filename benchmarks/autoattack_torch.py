"""The time of AutoAttack in PyTorch (torchattacks), to compare with autoattack_fidelity.py.

    pip install torch torchattacks
    python benchmarks/autoattack_torch.py --golden=DIR --images=cifar10.npz

The same 256 images, network and stages with the official numbers of steps and queries (torchattacks' own
`AutoAttack` takes 10 steps), each on what the earlier ones left. A line appears after each stage.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchattacks

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import torch_networks

BUDGET = {"eps": 8 / 255, "norm": "Linf", "seed": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="folder of the recorded outcomes")
    parser.add_argument("--images", type=Path, required=True, help=".npz with CIFAR-10's image_test, uint8")
    parser.add_argument("--channels_last", action="store_true")
    args = parser.parse_args()

    folder = args.golden / "autoattack_small"
    net = network(torch.load(folder / "resnet10_w16.pt", weights_only=True))
    records = np.load(folder / "records.npz")
    pixels = np.load(args.images)["image_test"][records["test_index"]]
    images = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
    if args.channels_last:
        net, images = net.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(records["labels"].astype(np.int64))
    stages = {
        "apgd-ce": torchattacks.APGD(net, steps=100, loss="ce", **BUDGET),
        "apgd-t": torchattacks.APGDT(net, steps=100, n_classes=10, **BUDGET),
        "fab-t": torchattacks.FAB(net, steps=100, n_classes=10, multi_targeted=True, **BUDGET),
        "square": torchattacks.Square(net, n_queries=5000, **BUDGET),
    }
    print(f"torch {torch.__version__}, torchattacks {torchattacks.__version__}, {torch.get_num_threads()} threads")
    print("| stage | correct | seconds | CPU seconds |")
    print("|---|---|---|---|")
    left = correct(net, images, labels)
    for name, attack in stages.items():
        clocks = time.perf_counter(), time.process_time()
        adversarial = attack(images[left], labels[left])
        spent = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
        left[left.clone()] = correct(net, adversarial, labels[left])
        print(f"| {name} | {int(left.sum())} | {spent[0]:.1f} | {spent[1]:.1f} |", flush=True)


def network(state: dict) -> torch.nn.Module:
    """ResNet-10: a ResNet-18 with the first block of each stage."""
    net = torch_networks.resnet18(state["conv1.weight"].shape[0], 10)
    for stage in range(1, 5):
        setattr(net, f"layer{stage}", getattr(net, f"layer{stage}")[:1])
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def correct(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return net(images).argmax(1) == labels


if __name__ == "__main__":
    main()
