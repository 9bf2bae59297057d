"""How long a training still takes: at least, as long as no validation has been timed; at most, and then about."""

from typing import NamedTuple


class Mark(NamedTuple):
    """A time, in seconds, at which `step` steps were done."""

    step: int
    seconds: float


class Pace:
    """What a training has taken since its first logged step: compilation, which is before that, does not come again."""

    def __init__(self, total: int) -> None:
        self.total = total  # steps
        self.first: Mark | None = None
        self.validated: list[Mark] = []  # the first and the newest validation

    def validate(self, step: int, seconds: float) -> None:
        """Notes the end of a validation."""
        self.validated = [*self.validated[:1], Mark(step, seconds)]

    def left(self, step: int, seconds: float) -> tuple[float | None, str]:
        """(seconds that remain after `step`, how they are meant); None: too early to tell."""
        now = Mark(step, seconds)
        if len(self.validated) > 1:
            return self._left(self.validated[0], self.validated[-1], now), "about"
        if self.first is None:
            self.first = now
        if self.validated:  # with the compilation of the validation, which does not come again either
            return self._left(self.first, self.validated[0], now), "at most"
        return self._left(self.first, now, now), "at least"  # without validation

    def _left(self, start: Mark, end: Mark, now: Mark) -> float | None:
        if end.step <= start.step:
            return None
        return (end.seconds - start.seconds) / (end.step - start.step) * (self.total - now.step)
