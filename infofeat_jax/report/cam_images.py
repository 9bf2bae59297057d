"""Figures of test images before and after the attack, with the class activation maps (CAMs) of their labels."""

import pathlib
import zipfile
from collections.abc import Mapping

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

TILE = 96  # pixels
GAP = 6
MARGIN, TITLES, DPI = 150, 30, 100  # for the text on the left and above; pixels per inch
MAP_WEIGHT = 0.55  # of the map's colour over the grey image
COLUMNS = ("clean", "adversarial", "perturbation", "CAM, clean", "CAM, adversarial")
NEEDED = ("images", "perturbed", "cam_clean", "cam_perturbed", "labels", "predicted_clean", "predicted_perturbed")
RGBImage = Float[np.ndarray, "height width 3"]
Tile = Float[np.ndarray, "tile_height tile_width 3"]


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a run's cam_images.npz; {} if it is missing or not readable as such."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
    complete = all(name in arrays and arrays[name].ndim and len(arrays[name]) for name in NEEDED)
    return arrays if complete and len({len(arrays[name]) for name in NEEDED}) == 1 else {}


def amplification(arrays: Mapping[str, np.ndarray]) -> float:
    """The factor that spreads a perturbation of epsilon over all grey levels around the middle."""
    largest = float(np.abs(arrays["perturbed"] - arrays["images"]).max())
    return 0.5 / largest if largest > 0 else 1.0


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


def mosaic(arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, "height width 4"]:
    """All examples, one below the other, with transparent gaps; red, green, blue, opacity."""
    examples = [tiles(arrays, index) for index in range(len(arrays["labels"]))]
    height, width, _ = examples[0][0].shape
    canvas = np.zeros((len(examples) * (height + GAP) - GAP, len(COLUMNS) * (width + GAP) - GAP, 4))
    for row, images in enumerate(examples):
        for column, image in enumerate(images):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[top : top + height, left : left + width] = np.dstack([image, np.ones((height, width))])
    return canvas


def draw(arrays: Mapping[str, np.ndarray]) -> Figure:
    """One line for each example, with its label and the model's predictions for the two images."""
    canvas = mosaic(arrays)
    height, width, _ = canvas.shape
    whole_width, whole_height = width + MARGIN, height + TITLES
    figure = Figure((whole_width / DPI, whole_height / DPI), dpi=DPI)
    axes = figure.add_axes((MARGIN / whole_width, 0, width / whole_width, height / whole_height))
    axes.imshow(canvas, interpolation="none")
    axes.axis("off")
    step, line = (width + GAP) / len(COLUMNS), (height + GAP) / len(arrays["labels"])
    for column, title in enumerate(COLUMNS):
        factor = f" x{amplification(arrays):.0f}" if title == "perturbation" else ""
        axes.text((column + 0.5) * step - GAP / 2, -8, title + factor, ha="center", va="bottom", fontsize=8)
    for index in range(len(arrays["labels"])):
        axes.text(-10, (index + 0.5) * line - GAP / 2, predictions(arrays, index), ha="right", va="center", fontsize=8)
    return figure


def predictions(arrays: Mapping[str, np.ndarray], index: int) -> str:
    """Label and predictions of one example in words."""
    label, before, after = (arrays[name][index] for name in ("labels", "predicted_clean", "predicted_perturbed"))
    return f"label {label}\nclean: predicted {before}\nadversarial: predicted {after}"


def caption(arrays: Mapping[str, np.ndarray]) -> str:
    """Which attack, and how much its perturbation is amplified."""
    budget = f" within {255 * float(arrays['epsilon']):g}/255" if "epsilon" in arrays else ""
    return f"Attack: {arrays.get('attack', 'not recorded')}{budget}; perturbation x{amplification(arrays):.0f}."


def _color(image: Float[np.ndarray, "height width c"]) -> RGBImage:
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image[..., :3]


def _enlarge(image: RGBImage) -> Tile:
    factor = max(1, TILE // len(image))
    return image.repeat(factor, 0).repeat(factor, 1)
