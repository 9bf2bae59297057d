"""Data sets in folders of images: one folder for each class."""

import os
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from infofeat_jax.data.arrays import Source, checked_source, fixed_order, roles
from infofeat_jax.data.decoding import check_memory, check_pillow, decode, header
from infofeat_jax.data.files import FileImages
from infofeat_jax.types import InvalidInput, summary

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LAYOUT = (
    "expected FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png, of which a fifth becomes the"
    f" test split ({', '.join(SUFFIXES)}; folders in a CLASS are searched too)"
)
Labelled = list[tuple[pathlib.Path, int]]


def folder(path: str, *, image_size: int = 0, in_memory: bool = True) -> Source:
    """Reads a folder of images. A class is called as its folder.

    Classes are in the folders train and test (or val, where there is no test; else val is joined with train), or in the
    folder itself: then a fifth of each class becomes the test split. They are numbered in alphabetical order, or
    numerical, if all names are numbers. Images become greyscale if all are, and RGB otherwise; transparency is dropped.
    The order of the test images is random, but always the same.

    Args:
      path: of the folder.
      image_size: pixels of a side: each image's largest square in the middle is scaled to it, bilinearly. 0: the
        images' own size, which must be one.
      in_memory: decodes all images now. Otherwise only their headers are read, and a batch's images when it is due.

    Raises:
      InvalidInput: Pillow is not installed, folders are arranged differently, or images have different sizes, more than
        8 bits, or cannot be read.
    """
    check_pillow(path)
    root = pathlib.Path(os.path.expanduser(path))
    names, splits = _find(path, root)
    files = [file for split in splits.values() for file, _ in split]
    with ThreadPoolExecutor() as threads:
        shape = _common(path, files, threads.map(header, files), image_size)
    if in_memory:
        check_memory(path, len(files), shape)

    def read(files: list[pathlib.Path], out: np.ndarray) -> None:
        for file, image in zip(files, out, strict=True):
            decode(image_size, str(file), file, image)

    arrays = {}
    for split, labelled in splits.items():
        order = fixed_order(len(labelled)) if split == "test" else range(len(labelled))
        images = FileImages([labelled[row][0] for row in order], shape, read, _identity)
        arrays[f"image_{split}"] = np.asarray(images) if in_memory else images
        arrays[f"label_{split}"] = np.array([labelled[row][1] for row in order])
    return checked_source(path, arrays, class_names=names)


def _find(path: str, root: pathlib.Path) -> tuple[list[str], dict[str, Labelled]]:
    """The classes' names, and the files of the splits with their labels."""
    try:
        called = {name.lower(): name for name in _folders(root)}  # Train, TEST ...
        train, test = ([called[name] for name in names] for names in roles(called))
        if train and not test and _folders(root / train[0]):
            raise InvalidInput(f"{path} has {train[0]!r}, but no folder test or val beside it: {LAYOUT}")
        if test and not train and _folders(root / test[0]):
            raise InvalidInput(f"{path} has {test[0]!r}, but no folder train beside it: {LAYOUT}")
        splits = {"train": train, "test": test} if train and test else {"train": ["."]}
        inside = {split: [root / name for name in names] for split, names in splits.items()}
        names = sorted({name for part in inside["train"] for name in _folders(part)}, key=_place)
        _check_nesting(path, names, [_folders(root / name) for name in names] if not train else [])
        if unknown := {name for part in inside.get("test", ()) for name in _folders(part)} - {*names}:
            raise InvalidInput(f"{path}: class {min(unknown)!r} of {test[0]} is not in {train[0]}: {LAYOUT}")
        found = {split: _files(folders, names) for split, folders in inside.items()}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {summary(error)}") from None
    counts = np.bincount([label for _, label in found["train"]], minlength=len(names))
    if len(names) < 2 or not all(found.values()) or not counts.all():
        empty = f", but class {names[counts.argmin()]!r} has no images" if names and not counts.all() else ""
        shown = ", ".join(map(repr, names[:5])) + (" ..." if len(names) > 5 else "")
        classes = f"the classes {shown}{empty}" if names else "no folders of classes"
        raise InvalidInput(_of_hugging_face(path, root) or f"{path} has {classes}: {LAYOUT}")
    return names, found


def _check_nesting(path: str, names: list[str], inside: list[list[str]]) -> None:
    """Raises InvalidInput if what would be classes are splits: by their names, and all have the same folders inside."""
    named = all(any(word in name.lower() for word in ("train", "test", "val")) for name in names)
    if named and len(inside) >= 2 and len(inside[0]) >= 2 and all({*one} == {*inside[0]} for one in inside):
        classes = ", ".join(map(repr, sorted(inside[0])[:3]))
        raise InvalidInput(f"{path}: each of {', '.join(map(repr, names[:3]))} has the folders {classes}: {LAYOUT}")


def _of_hugging_face(path: str, root: pathlib.Path) -> str:
    """How to convert what the library `datasets` has written with save_to_disk; "" if it is something else."""
    if (root / "dataset_dict.json").exists():
        arrays = (
            "image_train=d['train']['image'][:], label_train=d['train']['label'][:], image_test=..., label_test=..."
        )
    elif (root / "state.json").exists() and (root / "dataset_info.json").exists():
        arrays = "images=d['image'][:], labels=d['label'][:]"
    else:
        return ""
    return (
        f"{path} is a Hugging Face data set, which is not read directly: write an .npz of it with"
        f" d = datasets.load_from_disk({path!r}).with_format('numpy') and numpy.savez('data.npz', {arrays}) and give"
        " data.name = 'data.npz'"
    )


def _folders(folder: pathlib.Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]


def _place(name: str) -> tuple[bool, int, str]:
    """Numbers in their order, then the other names in theirs."""
    number = name.isascii() and name.isdigit()
    return not number, int(name) if number else 0, name


def _files(folders: list[pathlib.Path], names: list[str]) -> Labelled:
    return [
        (file, label)
        for label, name in enumerate(names)
        for folder in folders
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


def _common(
    path: str, files: list[pathlib.Path], headers: Iterable[tuple[str, tuple[int, int]]], image_size: int
) -> tuple[int, int, int]:
    """The shape that images have, or are scaled and converted to."""
    first, modes = None, set()
    for file, (mode, size) in zip(files, headers, strict=True):
        first = first or (file, size)
        if size != first[1] and not image_size:
            sizes = [f"{str(name)!r} {width} x {height}" for name, (width, height) in (first, (file, size))]
            advice = "resize them to one size, or set data.image_size"
            raise InvalidInput(f"{path}: images of different sizes, {' and '.join(sizes)}: {advice}")
        modes.add(mode)
    width, height = (image_size, image_size) if image_size else first[1]
    return height, width, 1 if modes <= {"L", "1"} else 3


def _identity(file: pathlib.Path) -> str:
    """Class, name and bytes."""
    return f"{file.parent.name}/{file.name} {file.stat().st_size}"
