"""Image files decoded by Pillow into arrays."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from infofeat_jax import installation
from infofeat_jax.data.arrays import MAX_BYTES
from infofeat_jax.types import InvalidInput, summary

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow's others include PostScript, a program
DEEP = ("I", "F")  # modes of more than 8 bits begin with these
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels


def check_pillow(path: str) -> None:
    """Raises InvalidInput if Pillow is not installed."""
    try:
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise InvalidInput(f"{path}: images need Pillow ({error}): run {installation.command('train')}") from error


def check_memory(path: str, count: int, shape: tuple[int, int, int]) -> None:
    """Raises InvalidInput if so many images of this shape are too large for an array in memory."""
    if count * np.prod(shape, dtype=np.int64) > MAX_BYTES:
        most = f"expected at most {MAX_BYTES / 2**30:.0f} GiB in memory: set data.in_memory=False"
        raise InvalidInput(f"{path}: {count} images {list(shape)}: {most}")


def header(file: Path) -> tuple[str, tuple[int, int]]:
    """The mode of an image, and its (width, height). Raises InvalidInput."""
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            mode, size = image.mode, image.size
    except Exception as error:  # Pillow documents no common type
        raise _unreadable(str(file), error) from None
    if mode.startswith(DEEP):
        raise InvalidInput(f"{str(file)!r} has more than 8 bits (mode {mode}): convert it to 8 bits")
    return mode, size


def decode(image_size: int, name: str, file: Path | io.BytesIO, out: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes an image of up to 8 bits into `out`, whose channels it is converted to.

    Args:
      image_size: pixels of a side, to which the largest square in the middle is scaled, bilinearly; 0: no scaling.
      name: what messages call the image.

    Raises:
      InvalidInput: it cannot be read, or has another size than `out`.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.mode.startswith(DEEP):
                raise ValueError(f"more than 8 bits (mode {image.mode}): convert it to 8 bits")
            whole = image.convert("RGBA") if image.mode == "P" else image  # Pillow warns of transparent palettes
            whole = whole.convert(MODES[out.shape[-1]])
            if image_size:
                whole = whole.resize((image_size, image_size), Image.Resampling.BILINEAR, _middle(*whole.size))
            out[...] = np.asarray(whole).reshape(out.shape)
    except Exception as error:
        raise _unreadable(name, error) from None


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    """The largest square in the middle: left, upper, right, lower."""
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def _unreadable(name: str, error: Exception) -> InvalidInput:
    return InvalidInput(f"{name!r} cannot be read as an image: {summary(error)}")
