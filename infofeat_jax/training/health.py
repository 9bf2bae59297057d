"""Whether training is still sound: losses that are numbers, and robustness that has not collapsed."""

import hashlib
import json
import math
import pathlib

from infofeat_jax.data.batches import batch_indices
from infofeat_jax.experiment import Run
from infofeat_jax.runtime import files, processes
from infofeat_jax.training import checkpoint, records
from infofeat_jax.types import RunFailed

SKIPPED = "skipped.json"  # [{step, epoch, images, loss}] of the batches that were left out


class BadNumbers(Exception):
    """A step whose loss is no number or too large, or that made the parameters so."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(step, loss, norm)
        self.step, self.loss, self.norm = step, loss, norm


def check(run: Run, recent: list[tuple[int, dict]]) -> None:
    """Raises BadNumbers for the first of the steps (counted from 1) that went bad; takes host values."""
    for step, values in recent:
        loss, norm = float(values["loss"]), float(values["parameter_norm"])
        if not (abs(loss) <= run.config.max_loss and math.isfinite(norm)):
            raise BadNumbers(step, loss, norm)


def skip(run: Run, bad: BadNumbers) -> None:
    """Notes the batch of the bad step as one to leave out. Raises RunFailed if no (further) one may be."""
    batch = describe_batch(run, bad.step - 1) | {"loss": repr(bad.loss)}
    before, last = read(run.workdir), checkpoint.latest_step(run.workdir)
    good = f"the last checkpoint before is of step {last}" if last else "there is no checkpoint before"
    what = (
        f"loss {bad.loss:g}, parameters of norm {bad.norm:g} (expected at most {run.config.max_loss:g} and finite) at"
        f" step {bad.step}, epoch {batch['epoch']}, images {batch['images']}"
    )
    if len(before) >= run.config.skip_batches:
        raise RunFailed(
            f"{what}; {good}: lower config.optimizer.learning_rate in another --workdir, or go back to it"
            f" and leave this batch out with --config.skip_batches={len(before) + 1}"
        )
    processes.barrier("skipped batches read")
    if processes.is_writer():
        files.write_atomically(run.workdir / SKIPPED, json.dumps([*before, batch]) + "\n")
        print(f"warning: {what}; {good}: going back, this batch is left out", flush=True)
    processes.barrier("skipped batches written")


def read(workdir: pathlib.Path) -> list[dict]:
    """The batches that are left out."""
    path = workdir / SKIPPED
    return json.loads(path.read_text()) if path.exists() else []


def skipped(workdir: pathlib.Path) -> set[int]:
    """The steps, counted from 0, whose batches are left out."""
    return {batch["step"] - 1 for batch in read(workdir)}


def describe_batch(run: Run, step: int) -> dict:
    """What tells a batch from others: its step (counted from 1), epoch, and a digest of its images' indices."""
    rows = batch_indices(run.config.seed, step, len(run.data.train.labels), run.config.batch_size)
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:12]
    return {"step": step + 1, "epoch": step // run.steps_per_epoch + 1, "images": digest}


def has_collapsed(run: Run, rates: dict[str, float]) -> bool:
    """Whether robust validation accuracy fell below half its best so far, which was above twice chance.

    Known of single-step training (Wong et al., 2020): robust against its own attack, not against PGD. When clean
    accuracy has fallen by half too, something else is wrong.
    """
    if run.method.attack is None:
        return False
    earlier = [record for record in records.read(run.workdir / "metrics.jsonl") if "epoch" in record]
    best = {name: max((r[f"validation_{name}_accuracy"] for r in earlier), default=0.0) for name in rates}
    robust = best["robust"] > 2 / run.data.num_classes and rates["robust"] < best["robust"] / 2
    return robust and rates["clean"] > best["clean"] / 2
