"""Which states at the ends of epochs are saved, and when: the newest when it is due, the best so far before it."""

import math
from time import monotonic

from infofeat_jax.runtime import processes
from infofeat_jax.training import checkpoint
from infofeat_jax.training.checkpoint import Checkpoints, Snapshot
from infofeat_jax.training.state import State


class Keeper:
    """Keeps the best state since the last save on the devices, and saves it with the newest when that is due.

    Whatever moment the process is killed at, the newest checkpoint on disk has the best epoch up to it beside it, or is
    that epoch: a run that resumes from it finds the same best epoch as an undisturbed one. Of equal scores the later
    one is the best, as for orbax.
    """

    def __init__(self, checkpoints: Checkpoints, minutes: float) -> None:
        self._checkpoints, self._seconds, self._saved = checkpoints, 60 * minutes, monotonic()
        self._best, self._newest = None, None  # the best if it is not on disk, and (step, score) of the newest
        score = checkpoints.best_score()
        self._top = -math.inf if score is None else score

    def add(self, snapshot: Snapshot, *, last: bool) -> None:
        """Takes the state at the end of a validated epoch; saves it if it is due or the `last`. Raises RunFailed."""
        checkpoint.check(self._checkpoints)
        self._newest = snapshot.step, snapshot.score
        if snapshot.score >= self._top:
            self._top, self._best = snapshot.score, snapshot
        if last or processes.agreed(monotonic() - self._saved >= self._seconds):
            self._save(snapshot)
            self._saved = monotonic()

    def interrupt(self, step: int, state: State) -> bool:
        """Saves the state of a run that is interrupted, unless it is on disk, and waits for it.

        Returns whether it was saved as a state within an epoch, and not as the end of one that is validated.
        """
        checkpoint.finish(self._checkpoints)
        score = self._newest[1] if self._newest and self._newest[0] == step else None
        epochs, interrupted = self._checkpoints.epochs.all_steps(), self._checkpoints.interrupted.all_steps()
        if step == 0 or step in epochs or (score is None and step in interrupted):
            return False
        self._save(Snapshot(step, state, score))
        checkpoint.finish(self._checkpoints)
        return score is None

    def _save(self, snapshot: Snapshot) -> None:
        best = [self._best] if self._best is not None and self._best.step != snapshot.step else []
        checkpoint.save(self._checkpoints, *best, snapshot)
        self._best = None
