"""Health checks of training: finite losses, and robustness that has not collapsed."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping

from infofeat_jax.runtime import files, processes
from infofeat_jax.training import checkpoint
from infofeat_jax.types import InvalidInput, RunFailed, check_count, summary

SKIPPED = "skipped.json"  # [{step, epoch, images, loss}] of the batches that were skipped


class UnsoundStep(Exception):
    """A training step whose loss is non-finite or too large, or whose parameters are non-finite afterwards."""

    def __init__(self, step: int, loss: float, norm: float | None) -> None:
        super().__init__(step, loss, norm)
        self.step, self.loss, self.norm = step, loss, norm


def check(step: int, values: Mapping, max_loss: float) -> None:
    """Raises UnsoundStep for the metrics, on the host, of an unsound step (counted from 1).

    Steps that are logged, and the newest before a state is saved, have a `parameter_norm`; the loss of each is NaN if
    its parameters are, as far as can be seen without reading them all.
    """
    loss = float(values["loss"])
    norm = float(values["parameter_norm"]) if "parameter_norm" in values else None
    if not (abs(loss) <= max_loss and (norm is None or math.isfinite(norm))):
        raise UnsoundStep(step, loss, norm)


def skip(
    workdir: pathlib.Path, unsound: UnsoundStep, batch: Mapping, before: frozenset[int], *, last: int, max_loss: float,
    skip_batches: int,
) -> frozenset[int]:  # fmt: skip
    """Records the batch of the unsound step as one to skip. Raises RunFailed if `skip_batches` already have been.

    `batch` identifies it: step, epoch and a digest of its image indices; `before`: the steps, counted from 0, that are
    skipped already; `last` is the newest checkpoint's step. Returns the steps to skip, which no process has to read
    from the file that another has just written.
    """
    good = f"the last earlier checkpoint is of step {last}" if last else "there is no earlier checkpoint"
    norm = "" if unsound.norm is None else f", parameters of norm {unsound.norm:g}"
    what = (
        f"loss {unsound.loss:g}{norm} (expected at most {max_loss:g}, and finite parameters afterwards) at"
        f" step {unsound.step}, epoch {batch['epoch']}, images {batch['images']}"
    )
    if len(before) >= skip_batches:
        raise RunFailed(
            f"{what}; {good}: lower the learning rate, in another directory if there is a checkpoint; or with the"
            f" command return to that checkpoint and skip this batch: --config.skip_batches={len(before) + 1}"
        )
    if processes.is_writer():
        noted = [*read(workdir), {**batch, "loss": repr(unsound.loss)}]
        files.write_atomically(workdir / SKIPPED, json.dumps(noted) + "\n")
        print(f"warning: {what}; {good}: resuming from there, this batch is skipped", flush=True)
    processes.barrier("skipped batches written")
    return before | {unsound.step - 1}


def read(workdir: pathlib.Path) -> list[dict]:
    """The records of the skipped batches. Raises InvalidInput for a file that was edited into something else."""
    path = workdir / SKIPPED
    try:
        noted = json.loads(path.read_text()) if path.exists() else []
        return [{**batch, "step": check_count("step", batch["step"], 1)} for batch in noted]
    except (ValueError, KeyError, TypeError) as error:
        expected = 'expected [{"step": 3}, ...]: mend it, or remove it to skip no batch'
        raise InvalidInput(f"{path} cannot be read ({summary(error)}): {expected}") from None


def skipped(workdir: pathlib.Path) -> frozenset[int]:
    """The steps, counted from 0, whose batches are skipped; those of a training that got nowhere are forgotten."""
    if not checkpoint.has_begun(workdir):
        if processes.is_writer():
            (workdir / SKIPPED).unlink(missing_ok=True)
        return frozenset()
    return frozenset(batch["step"] - 1 for batch in read(workdir))


def has_collapsed(rates: Mapping[str, float], epochs: Iterable[Mapping], num_classes: int) -> bool:
    """Whether robust validation accuracy has fallen below half its best in the earlier `epochs` (of metrics.jsonl).

    This is catastrophic overfitting of single-step training (Wong et al., 2020): the model is robust against its own
    attack, but not against PGD. It counts only if that best was above twice chance level, and if clean accuracy has
    not fallen by half too: something else is wrong then. (With two classes, where twice chance level is out of reach,
    halfway from chance to 1.)
    """
    earlier = [record for record in epochs if "epoch" in record]
    best = {name: max((r[f"validation_{name}_accuracy"] for r in earlier), default=0.0) for name in rates}
    least = min(2 / num_classes, (1 + 1 / num_classes) / 2)
    robust = best["robust"] > least and rates["robust"] < best["robust"] / 2
    return robust and rates["clean"] > best["clean"] / 2
