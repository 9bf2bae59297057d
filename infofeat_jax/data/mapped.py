"""A second pool of training images, an .npz that stays on disk: its images are mapped, not read."""

import os
import pathlib
import zipfile

import numpy as np

from infofeat_jax.data.archives import read_archive, read_member
from infofeat_jax.data.arrays import MAX_CLASSES, Split, checked_split
from infofeat_jax.types import InvalidInput, summary

FIELDS = ("image", "label")
LOCAL_HEADER = 30  # bytes of a ZIP member's header before its name


def mapped(path: str, num_classes: int = MAX_CLASSES) -> Split:
    """The arrays `image`, uint8 [n, h, w, c], and `label`, integers [n], of an .npz as numpy.savez writes it.

    The images are mapped at their place in the file: 20 million of CIFAR-10's size are 61 GB there and none in memory.

    Raises:
      InvalidInput: the file is missing or damaged, its images are compressed, or an array is not as described.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):
        raise InvalidInput(f"{path}: no such file, or not readable: data.extra takes an .npz with image and label")
    with file.open("rb") as opened:
        archive = read_archive(path, opened)
        if missing := [name for name in FIELDS if name not in archive]:
            raise InvalidInput(f"{path} lacks {', '.join(missing)}; it has {', '.join(map(repr, archive.files[:9]))}")
        member = archive.zip.getinfo("image.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise InvalidInput(f"{path}: its images are compressed and cannot be mapped: {_rewrite(path)}")
        images, labels = _map(path, file, member), read_member(path, archive, "label")
    return checked_split(f"{path}: image", images, f"{path}: label", labels, num_classes)


def _map(path: str, file: pathlib.Path, member: zipfile.ZipInfo) -> np.ndarray:
    try:
        with file.open("rb") as opened:
            opened.seek(member.header_offset)
            header = opened.read(LOCAL_HEADER)
            if header[:4] != b"PK\x03\x04":
                raise ValueError("there is no member where the directory says")
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            opened.seek(name + extra, os.SEEK_CUR)
            start, version = opened.tell(), np.lib.format.read_magic(opened)
            if version != (1, 0):
                raise ValueError(f"version {version} of the .npy format")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
            offset = opened.tell()
        if dtype.hasobject or fortran:
            raise ValueError("objects" if dtype.hasobject else "columns before rows")
        if member.file_size != offset - start + int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise ValueError(f"it is too short or too long for shape {shape}")
        return np.memmap(file, dtype, "r", offset, shape) if 0 not in shape else np.empty(shape, dtype)
    except Exception as error:  # numpy and the file system raise many kinds for damaged files
        raise InvalidInput(f"{path}: image cannot be mapped as a plain array: {summary(error)}") from error


def _rewrite(path: str) -> str:
    other = str(pathlib.Path(path).with_suffix("")) + "-uncompressed.npz"
    copying = "[shutil.copyfileobj(a.open(n), b.open(n, 'w', force_zip64=True)) for n in a.namelist()]"
    code = f"import shutil, zipfile as z; a = z.ZipFile({path!r}); b = z.ZipFile({other!r}, 'w'); {copying}; b.close()"
    return f'rewrite it once with python -c "{code}"'
