"""PGD20 of other libraries beside ours, on the same network and images: robust accuracy and images a second.

    pip install foolbox adversarial-robustness-toolbox torch && pip install --no-deps torchattacks
    python benchmarks/other_libraries.py --images=cifar10.npz [--count=256] [--repeats=3]

ResNet-10 of width 16, adversarially trained on CIFAR-10 (tests/golden/resnet10_w16.npz), for the PyTorch libraries
with the same weights as a PyTorch network; l_inf 8/255, 20 steps of 2/255 from a random start, all images in one batch,
float32. The libraries take turns; medians, without the first round, which compiles. Accuracies are those of our network
on the images found, which are checked to be within epsilon. A library that is not installed is left out, and said.
On a machine with other work: OMP_NUM_THREADS=1 taskset -c 0 python ..., as threads that wait for each other count too.
"""

import argparse
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from autoattack_fidelity import network

from infofeat_jax import adapters, attacks
from infofeat_jax.models.pytorch.names import to_state_dict
from infofeat_jax.runtime import compilation

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 20
Find = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (images [n, h, w, c], labels) -> adversarial images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, required=True, help=".npz with CIFAR-10's image_test and label_test, uint8"
    )
    parser.add_argument("--count", type=int, default=256, help="of the first test images")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    compilation.tune_cpu()

    file, forward = np.load(args.images), network()
    images = file["image_test"][: args.count].astype(np.float32) / 255
    labels = file["label_test"][: args.count].astype(np.int32)
    found = {name: made for name, make in LIBRARIES.items() if (made := attempt(make, forward)) is not None}
    spent = {name: [] for name in found}
    adversarial = {}
    for _ in range(args.repeats + 1):
        for name, find in found.items():
            clocks = time.perf_counter(), time.process_time()
            adversarial[name] = find(images, labels)
            spent[name].append((time.perf_counter() - clocks[0], time.process_time() - clocks[1]))
    print(f"clean accuracy {100 * accuracy(forward, images, labels):.1f} % of {len(labels)} images")
    print("| library | robust accuracy, % | images/s | images per second of CPU time |")
    print("|---|---|---|---|")
    for name, pairs in spent.items():
        assert np.abs(adversarial[name] - images).max() < EPSILON + 1e-6, name
        rates = [len(labels) / statistics.median(each) for each in zip(*pairs[1:], strict=True)]
        robust = 100 * accuracy(forward, adversarial[name], labels)
        print(f"| {name} | {robust:.1f} | {rates[0]:.1f} | {rates[1]:.1f} |", flush=True)


def attempt(make: Callable[..., tuple[str, Find]], forward) -> Find | None:
    """The library's attack; None, and a line, if it is not installed."""
    try:
        return make(forward)
    except ImportError as error:
        print(f"left out: {error}")
        return None


def accuracy(forward, images: np.ndarray, labels: np.ndarray) -> float:
    return float((np.asarray(jax.jit(forward)(jnp.asarray(images)).logits).argmax(-1) == labels).mean())


def ours(forward) -> Find:
    attack = jax.jit(partial(attacks.pgd, epsilon=EPSILON, step_size=STEP, num_steps=STEPS))
    return lambda images, labels: np.asarray(attack(forward, jax.random.key(0), images, labels))


def foolbox_jax(forward) -> Find:
    from foolbox.attacks import LinfPGD

    attack, model = LinfPGD(abs_stepsize=STEP, steps=STEPS), adapters.foolbox(forward)

    def find(images, labels):
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        return np.asarray(attack(model, images, labels, epsilons=EPSILON)[1])

    return find


def foolbox_torch(forward) -> Find:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    model = foolbox.PyTorchModel(twin(forward), bounds=(0, 1))
    return in_torch(lambda images, labels: attack(model, images, labels, epsilons=EPSILON)[1])


def torchattacks(forward) -> Find:
    import torchattacks

    return in_torch(torchattacks.PGD(twin(forward), eps=EPSILON, alpha=STEP, steps=STEPS, random_start=True))


def art(forward) -> Find:
    import torch
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    net = twin(forward)
    classifier = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1))
    options = {"eps": EPSILON, "eps_step": STEP, "max_iter": STEPS, "num_random_init": 1, "verbose": False}

    def find(images, labels):
        attack = ProjectedGradientDescent(classifier, batch_size=len(images), **options)
        found = attack.generate(
            np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.eye(10, dtype=np.float32)[labels]
        )
        return found.transpose(0, 2, 3, 1)

    return find


def in_torch(attack: Callable) -> Find:
    """An attack on tensors [n, c, h, w]."""
    import torch

    def find(images, labels):
        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return attack(tensor, torch.from_numpy(labels).long()).numpy().transpose(0, 2, 3, 1)

    return find


def twin(forward):
    """The network in PyTorch, with the same weights."""
    import torch
    import torch_networks

    net = torch_networks.resnet18(16, 10)
    for stage in range(1, 5):
        setattr(net, f"layer{stage}", getattr(net, f"layer{stage}")[:1])
    state = to_state_dict(forward.args[0])
    net.load_state_dict({name: torch.as_tensor(np.array(value)) for name, value in state.items()}, strict=False)
    return net.eval().requires_grad_(False)


def version(*packages: str) -> str:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(package)
    return ", ".join(found)


LIBRARIES = {
    version("infofeat_jax", "jax"): ours,
    version("foolbox", "jax"): foolbox_jax,
    version("foolbox", "torch"): foolbox_torch,
    version("torchattacks", "torch"): torchattacks,
    version("adversarial-robustness-toolbox", "torch"): art,
}


if __name__ == "__main__":
    main()
