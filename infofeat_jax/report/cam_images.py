"""Figures of test images before and after the attack, with the class activation maps (CAMs) of their labels."""

import io
import pathlib
import textwrap
from collections.abc import Mapping

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

from infofeat_jax.report.runs import read_arrays

TILE = 96  # pixels
GAP = 6
MARGIN, TITLES, DPI = 150, 30, 100  # for the text on the left and above; pixels per inch
LINE = 24  # characters on the left
LEGIBLE = 0.99  # the share of a run's changes of a pixel that the amplified perturbation shows without clipping
MAP_WEIGHT = 0.55  # of the map's colour over the grey image
COLUMNS = ("clean", "adversarial", "perturbation", "CAM, clean", "CAM, adversarial")
NEEDED = ("images", "perturbed", "cam_clean", "cam_perturbed", "labels", "predicted_clean", "predicted_perturbed")
# Of runs of versions that did not record them.
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
RGBImage = Float[np.ndarray, "height width 3"]
Tile = Float[np.ndarray, "tile_height tile_width 3"]


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a run's cam_images.npz; {} if it is missing or not readable as such."""
    arrays = read_arrays(path)
    complete = all(name in arrays and arrays[name].ndim and len(arrays[name]) for name in NEEDED)
    numbered = complete and all(
        arrays[name].dtype.kind in "iu" for name in NEEDED if name.startswith(("label", "pred"))
    )
    return arrays if numbered and len({len(arrays[name]) for name in NEEDED}) == 1 else {}


def amplification(arrays: Mapping[str, np.ndarray]) -> float:
    """The factor that spreads the perturbations over all grey levels around the middle."""
    changes = np.abs(arrays["perturbed"] - arrays["images"])
    largest = float(np.quantile(changes, LEGIBLE)) or float(changes.max())  # of a few pixels only, the rest is zero
    return 0.5 / largest if largest > 0 else 1.0


def titles(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """COLUMNS, with the factor by which the perturbation is amplified."""
    return [title + f" {factor(arrays)}" * (title == "perturbation") for title in COLUMNS]


def factor(arrays: Mapping[str, np.ndarray]) -> str:
    """The amplification in words."""
    value = amplification(arrays)
    return f"\N{MULTIPLICATION SIGN}{value:.0f}" if value >= 10 else f"\N{MULTIPLICATION SIGN}{value:.1f}"


def tiles(arrays: Mapping[str, np.ndarray], index: int) -> list[Tile]:
    """The images of one example, in the order of COLUMNS; the two maps share their scale."""
    clean, attacked = (_color(arrays[name][index]) for name in ("images", "perturbed"))
    difference = 0.5 + amplification(arrays) * (attacked - clean)
    maps = [arrays[name][index] for name in ("cam_clean", "cam_perturbed")]
    low, high = min(map(np.min, maps)), max(map(np.max, maps))
    overlays = [
        overlay(image, (cam - low) / max(high - low, 1e-12)) for image, cam in zip((clean, attacked), maps, strict=True)
    ]
    return [_enlarge(image) for image in (clean, attacked, np.clip(difference, 0, 1))] + overlays


def overlay(image: RGBImage, cam: Float[np.ndarray, "h w"]) -> Tile:
    """The map, in [0, 1], as colours over the image in grey."""
    grey = _enlarge(image).mean(-1, keepdims=True)
    smooth = Image.fromarray(cam.astype(np.float32)).resize((grey.shape[1], grey.shape[0]), Image.Resampling.BICUBIC)
    colors = matplotlib.colormaps["inferno"](np.clip(np.asarray(smooth), 0, 1))[..., :3]
    return (1 - MAP_WEIGHT) * grey + MAP_WEIGHT * colors


def strip(images: list[Tile]) -> Float[np.ndarray, "height width 4"]:
    """Tiles beside each other with transparent gaps; red, green, blue, opacity."""
    height, width, _ = images[0].shape
    canvas = np.zeros((height, len(images) * (width + GAP) - GAP, 4))
    for column, image in enumerate(images):
        left = column * (width + GAP)
        canvas[:, left : left + width] = np.dstack([image, np.ones((height, width))])
    return canvas


def to_png(image: Float[np.ndarray, "height width 4"]) -> bytes:
    """The image, in [0, 1], as a file."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(file, "png", optimize=True)
    return file.getvalue()


def draw(arrays: Mapping[str, np.ndarray]) -> Figure:
    """One line for each example, with what the model takes it for."""
    strips = [strip(tiles(arrays, index)) for index in range(len(arrays["labels"]))]
    height, width, _ = strips[0].shape
    line, step = height + GAP, (width + GAP) / len(COLUMNS)
    whole_width, whole_height = width + MARGIN, line * len(strips) - GAP + TITLES
    figure = Figure((whole_width / DPI, whole_height / DPI), dpi=DPI)
    axes = figure.add_axes((MARGIN / whole_width, 0, width / whole_width, 1 - TITLES / whole_height))
    gap = np.zeros((GAP, width, 4))
    axes.imshow(np.concatenate([part for one in strips for part in (one, gap)][:-1]), interpolation="none")
    axes.axis("off")
    for column, title in enumerate(titles(arrays)):
        axes.text((column + 0.5) * step - GAP / 2, -8, title, ha="center", va="bottom", fontsize=7.5)
    for index in range(len(strips)):
        text = textwrap.fill(predictions(arrays, index), LINE)
        axes.text(-10, (index + 0.5) * line - GAP / 2, text, ha="right", va="center", fontsize=8)
    return figure


def predictions(arrays: Mapping[str, np.ndarray], index: int) -> str:
    """What the model takes an image for, attacked and, if that is wrong too, unattacked: "cat, taken for dog"."""
    label, before, after = (arrays[name][index] for name in ("labels", "predicted_clean", "predicted_perturbed"))
    name = class_name(arrays, label)
    attacked = "recognised" if after == label else f"taken for {class_name(arrays, after)}"
    if before == label:
        return f"{name}, {attacked}"
    if before == after:
        return f"{name}, {attacked} even unattacked"
    return f"{name}, {attacked}; unattacked, for {class_name(arrays, before)}"


def class_name(arrays: Mapping[str, np.ndarray], label: int | np.integer) -> str:
    """The name of a class as recorded, or its number."""
    names = arrays.get("class_names", np.empty(0))
    return str(names[label]) if names.ndim == 1 and 0 <= label < len(names) else str(label)


def caption(arrays: Mapping[str, np.ndarray]) -> str:
    """Which attack, and how much its perturbation is amplified."""
    budget = f" within {255 * float(arrays['epsilon']):g}/255" if "epsilon" in arrays else ""
    return f"Attack: {arrays.get('attack', 'not recorded')}{budget}; perturbation {factor(arrays)}."


def _color(image: Float[np.ndarray, "height width c"]) -> RGBImage:
    if image.shape[-1] == 1:
        return np.repeat(image, 3, -1)
    missing = max(3 - image.shape[-1], 0)  # of two channels, which are shown as red and green
    return np.pad(image, ((0, 0), (0, 0), (0, missing)))[..., :3]


def _enlarge(image: RGBImage) -> Tile:
    factor = max(1, TILE // len(image))
    return image.repeat(factor, 0).repeat(factor, 1)
