"""Small networks trained by published PyTorch code, and what it computes with them: golden/nets.npz."""

from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "golden" / "nets.npz"
NETS = {  # name: the arguments of from_torch that make it a function of [0, 1] images
    "resnet18_w4": {},
    "preact18_ro_w4": {},
    "preact18_rb_w4": {},
    "wrn10_1_fs": {"mean": 0.5, "std": 0.5},
    "wrn16_trades_w4": {},
}


def images() -> np.ndarray:
    """Eight CIFAR-10 test images [8, 32, 32, 3] in [0, 1]."""
    with np.load(PATH) as golden:
        return golden["images_u8"].astype(np.float32) / np.float32(255)


def state_dict(net: str) -> dict[str, np.ndarray]:
    """The network's state_dict, stored as the byte planes of one float32 vector: these compress better."""
    with np.load(PATH) as golden:
        flat = np.ascontiguousarray(golden[f"{net}/state"].T).view(np.float32).ravel()
        state = _split(flat, golden[f"{net}/layout"])
    counters = {key: value.astype(np.int64) for key, value in state.items() if key.endswith("_tracked")}
    return state | counters


def expected(net: str) -> dict[str, Any]:
    """logits, pooled [8, c], featmap_nchw [2, c, h, w] (of the first two images), train_logits, train_pooled,
    and after_train: the running statistics by key after that training-mode forward."""
    names = ("logits", "pooled", "featmap_nchw", "train_logits", "train_pooled")
    with np.load(PATH) as golden:
        layout = [line for line in golden[f"{net}/layout"] if b".running_" in line]
        after = _split(golden[f"{net}/after_train"], layout)
        return {name: golden[f"{net}/{name}"] for name in names} | {"after_train": after}


def _split(flat: np.ndarray, layout) -> dict[str, np.ndarray]:
    """The arrays in `flat`, whose keys and shapes are the lines of `layout`: b"conv1.weight 4 3 3 3"."""
    shapes = {key.decode(): tuple(map(int, shape)) for key, *shape in map(bytes.split, layout)}
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    assert ends[-1] == flat.size
    parts = np.split(flat, ends[:-1])
    return {key: part.reshape(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
