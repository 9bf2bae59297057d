"""Images that stay in their files: those of a batch are decoded when they are asked for."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8

Decode = Callable[[Path, UInt8[np.ndarray, "h w c"]], None]  # writes the image in a file into the array


class FileImages:
    """Images uint8 [n, h, w, c] in files: an array, as far as batches are concerned, of more than memory may hold.

    As of a NumPy array, a slice is a view, which reads nothing; an array of indices makes a copy, for which these
    images are decoded, by several threads. `np.asarray` decodes all of them.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int], decode: Decode) -> None:
        self.files, self.shape, self._decode = files, (len(files), *shape), decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice | Int[np.ndarray, " b"]) -> "FileImages | UInt8[np.ndarray, 'b h w c']":
        if isinstance(rows, slice):
            return FileImages(self.files[rows], self.shape[1:], self._decode)
        return self.read(rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def read(self, rows: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Decodes these images. Raises what `decode` raises."""
        images = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with ThreadPoolExecutor() as threads:  # Pillow decodes without the interpreter's lock
            list(threads.map(self._decode, (self.files[row] for row in rows), images))
        return images

    def identity(self) -> list[str]:
        """Class, name and bytes of each file, which tell a changed folder without decoding it."""
        return [f"{file.parent.name}/{file.name} {file.stat().st_size}" for file in self.files]

    def select(self, rows: Int[np.ndarray, " b"]) -> "FileImages":
        """These images, in this order, still in their files."""
        return FileImages([self.files[row] for row in rows], self.shape[1:], self._decode)


def select(
    images: Shaped[np.ndarray, "n h w c"] | FileImages, rows: Int[np.ndarray, " b"]
) -> Shaped[np.ndarray, "b h w c"] | FileImages:
    """These images, in this order: a copy, or what is still in files."""
    return images.select(rows) if isinstance(images, FileImages) else images[rows]
