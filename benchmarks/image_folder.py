"""What images that are not held in memory cost the host: headers (of TFDS labels) at the start, and each batch.

  python benchmarks/image_folder.py
  python benchmarks/image_folder.py --tfds    # the same images as TFDS prepares them, in a file of array_record
  python benchmarks/image_folder.py --milliseconds=200   # of a step, during which the next batches are decoded

Synthetic JPEGs of ImageNet's usual size, smooth noise of quality 90, decoded and scaled to 224 pixels. The files are in
the page cache. "Waits" is the time in which a device with such steps has nothing to do, as the loop feeds it: at most
`ahead.AHEAD` steps are queued, and each is handed over when its batch is decoded.
"""

import argparse
import io
import os
import pathlib
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tfds_files
from PIL import Image

from infofeat_jax import data
from infofeat_jax.data.batches import batch_indices
from infofeat_jax.training.ahead import AHEAD

NAME = "synthetic"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--milliseconds", type=float, default=1000.0, help="of a training step on the device")
    parser.add_argument("--tfds", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (prepare if args.tfds else write)(pathlib.Path(folder), args.images)
        folder = f"{folder}/{NAME}" if args.tfds else folder
        began = time.perf_counter()
        split = data.load(folder, validation_size=1, image_size=args.image_size, in_memory=False).train
        found = time.perf_counter() - began
        sizes = len(split.labels), args.batch_size
        rows = [batch_indices(0, step, *sizes) for step in range(args.steps)]
        split.images[rows[0]]
        began, used = time.perf_counter(), time.process_time()
        for some in rows:
            split.images[some]
        wall, used = (time.perf_counter() - began) / args.steps, (time.process_time() - used) / args.steps
        waits = fed(split.images, rows, args.milliseconds / 1000)
    print(f"{os.cpu_count()} cores; {args.images} JPEGs of 500 x 375 to {args.image_size} x {args.image_size}")
    print(f"start: {1e6 * found / args.images:.0f} us an image")
    print(f"batch of {args.batch_size}: {1e3 * wall:.0f} ms, {1e3 * used / args.batch_size:.2f} ms of a core an image")
    print(f"with steps of {args.milliseconds:.0f} ms the device waits {100 * waits:.1f} % of the time")


def write(folder: pathlib.Path, count: int) -> None:
    """One file for each image, in the folder of its class."""
    for index, image in enumerate(jpegs(count)):
        path = folder / str(index % 2) / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)


def prepare(folder: pathlib.Path, count: int) -> None:
    """One file of array_record, in the layout of TFDS."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    examples = ({"image": io.BytesIO(image), "label": index % 2} for index, image in enumerate(jpegs(count)))
    tfds_files.prepare(folder, NAME.title(), "1.0.0", features, {"train": examples})


def jpegs(count: int) -> Iterator[bytes]:
    """All different."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        small, written = Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8)), io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(written, "JPEG", quality=90)
        yield written.getvalue()


def fed(images, rows: list[np.ndarray], seconds: float) -> float:
    """The share of time in which a device, a thread that sleeps, has nothing to do after its first step."""
    queued: deque = deque()
    with ThreadPoolExecutor(1) as device:
        for some in rows:
            images[some]
            queued.append(device.submit(sleep, seconds))
            if len(queued) == 1:
                began = time.perf_counter()
            if len(queued) > AHEAD:
                queued.popleft().result()
        queued[-1].result()
    return max(0.0, 1 - len(rows) * seconds / (time.perf_counter() - began))


def sleep(seconds: float) -> None:
    time.sleep(seconds)


if __name__ == "__main__":
    main()
