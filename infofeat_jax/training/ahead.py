"""Results that the devices have yet to compute: work is handed to them ahead, its results are used in order."""

from collections import deque
from collections.abc import Callable

import jax
from jaxtyping import PyTree

AHEAD = 4  # programs that may be queued on the devices: few, so that an interrupted run stops soon


class Ahead:
    """A queue of (device arrays, what to do with them on the host); only `AHEAD` are waited for at a time.

    While the host uses one result the devices compute the next ones, so that what `use` does costs them no time.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[PyTree, Callable]] = deque()

    def push(self, arrays: PyTree, use: Callable) -> None:
        """Queues `use(arrays on the host)`; waits for the oldest if there are too many. Raises what `use` raises."""
        self._waiting.append((arrays, use))
        while self._waiting and (self._waiting[0][0] is None or self._programs() > AHEAD):
            self._pop()

    def then(self, act: Callable[[], None]) -> None:
        """Queues something to do on the host once all that was queued before has been used."""
        self.push(None, lambda _: act())

    def drain(self) -> None:
        """Waits for everything."""
        while self._waiting:
            self._pop()

    def _programs(self) -> int:
        return sum(arrays is not None for arrays, _ in self._waiting)

    def _pop(self) -> None:
        arrays, use = self._waiting.popleft()
        use(jax.device_get(arrays))
