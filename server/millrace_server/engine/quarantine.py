"""Requests that took the engine down with them, and may not do so again. Pure: time is an argument, memory is bounded.

Who was there may be innocent. So one strike harms nobody, a strike is forgotten after a while, and `clear` is for an answer in between.
"""

from collections import OrderedDict, deque
from hashlib import sha256

import msgspec

from millrace_server.engine.messages import Submit

STRIKES = 2
SECONDS = 600.0
CAPACITY = 4096
"""Requests on record; the ones that were struck longest ago make room."""


class Quarantine:
    """Knows requests by what the engine computes for them, whoever sends them and under whichever name."""

    def __init__(self, *, strikes: int = STRIKES, seconds: float = SECONDS, capacity: int = CAPACITY) -> None:
        self._limit = strikes
        self._seconds = seconds
        self._capacity = capacity
        self._strikes: OrderedDict[bytes, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._strikes)

    def strike(self, request: Submit, *, now: float) -> None:
        """Note that it was computed when a failure happened. Equal requests at the same moment are struck once: it was one failure."""
        self._forget(now)
        digest = _digest(request)
        strikes = self._strikes.setdefault(digest, deque(maxlen=self._limit))
        if not strikes or strikes[-1] != now:
            strikes.append(now)
        self._strikes.move_to_end(digest)
        if len(self._strikes) > self._capacity:
            self._strikes.popitem(last=False)

    def clear(self, request: Submit) -> None:
        """It was answered: it is not to blame."""
        if self._strikes:
            self._strikes.pop(_digest(request), None)

    def is_quarantined(self, request: Submit, *, now: float) -> bool:
        """Whether it was struck `strikes` times within the last `seconds`."""
        self._forget(now)
        if not self._strikes:
            return False
        recent = [then for then in self._strikes.get(_digest(request), ()) if then > now - self._seconds]
        return len(recent) >= self._limit

    def _forget(self, now: float) -> None:
        """Drop the requests whose last strike is too long ago: they are in front."""
        while self._strikes:
            digest, strikes = next(iter(self._strikes.items()))
            if strikes[-1] > now - self._seconds:
                return
            del self._strikes[digest]


def _digest(request: Submit) -> bytes:
    """Over the prompt and all that is done with its logits."""
    sampling = msgspec.structs.replace(request.sampling, logit_bias=dict(sorted(request.sampling.logit_bias.items())))
    return sha256(msgspec.msgpack.encode((request.prompt, sampling))).digest()
