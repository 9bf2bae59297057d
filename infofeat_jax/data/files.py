"""Images that stay in their files: those of a batch are decoded when they are asked for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

Decode = Callable[[Sequence, UInt8[np.ndarray, "b h w c"]], None]  # writes the images at these places into the array
Identify = Callable[[Any], str]
LARGEST = 1000  # images that a thread reads at once


class FileImages:
    """Images uint8 [n, h, w, c] in files: an array, as far as batches are concerned, of more than memory may hold.

    As of a NumPy array, a slice is a view, which reads nothing; an array of indices makes a copy, for which these
    images are decoded, by several threads. `np.asarray` decodes all of them.

    Args:
      places: of the images: the path of each one's file, or its row in a file of many.
      shape: of an image, (h, w, c).
      decode: writes the images at some places into an array; several threads call it.
      identify: tells what is at a place without decoding it.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, places: Sequence, shape: tuple[int, int, int], decode: Decode, identify: Identify) -> None:
        self.places, self.shape, self._decode, self._identify = places, (len(places), *shape), decode, identify

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice | Int[np.ndarray, " b"]) -> "FileImages | UInt8[np.ndarray, 'b h w c']":
        return self._of(self.places[rows]) if isinstance(rows, slice) else self.read(rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def read(self, rows: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Decodes these images. Raises what `decode` raises."""
        images = np.empty((len(rows), *self.shape[1:]), self.dtype)
        workers = (os.cpu_count() or 1) + 4  # Pillow decodes without the interpreter's lock
        size = min(-(-len(rows) // workers) or 1, LARGEST)

        def read_from(start: int) -> None:
            places = [self.places[row] for row in rows[start : start + size]]
            self._decode(places, images[start : start + size])

        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(read_from, range(0, len(rows), size)))
        return images

    def identity(self) -> list[str]:
        """What tells changed files without decoding them, for each image."""
        return [self._identify(place) for place in self.places]

    def select(self, rows: Int[np.ndarray, " b"]) -> "FileImages":
        """These images, in this order, still in their files."""
        return self._of([self.places[row] for row in rows])

    def _of(self, places: Sequence) -> "FileImages":
        return FileImages(places, self.shape[1:], self._decode, self._identify)


def select(
    images: Shaped[np.ndarray, "n h w c"] | FileImages, rows: Int[np.ndarray, " b"]
) -> Shaped[np.ndarray, "b h w c"] | FileImages:
    """These images, in this order: a copy, or what is still in files."""
    return images.select(rows) if isinstance(images, FileImages) else images[rows]
