"""Who is admitted next: priorities that age, and tenants in turn. Pure decisions, like the scheduler that asks.

A request's rank is fixed when it arrives: its priority, in units of AGEING_SECONDS, plus its time of arrival. Whoever has waited
AGEING_SECONDS longer goes like one of the next better priority, so nobody starves, and no clock is needed to say so.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from millrace_server.engine.sequence import Sequence

AGEING_SECONDS = 20.0
"""What one step of priority is worth in waiting."""


def rank(sequence: Sequence) -> float:
    """Lower goes first, and is the last to be preempted."""
    return sequence.request.priority * AGEING_SECONDS + sequence.arrived


class WaitingQueue:
    """One line per tenant in every priority. The priority whose oldest request ranks first is served, and its tenants in turn."""

    def __init__(self) -> None:
        self._lines: dict[int, OrderedDict[str, deque[Sequence]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for tenants in self._lines.values() for line in tenants.values() for sequence in line)

    def add(self, sequence: Sequence) -> None:
        self._line(sequence).append(sequence)
        self._size += 1

    def put_back(self, sequence: Sequence) -> None:
        """A sequence that was admitted and had to leave: it is the next one of its priority."""
        self._line(sequence).appendleft(sequence)
        self._lines[sequence.request.priority].move_to_end(sequence.request.tenant, last=False)
        self._size += 1

    def head(self) -> Sequence | None:
        """The next one to be admitted."""
        if not self._size:
            return None
        tenants = min(self._lines.values(), key=lambda tenants: min(rank(line[0]) for line in tenants.values()))
        return next(iter(tenants.values()))[0]

    def pop(self) -> Sequence:
        """Take the head; its tenant's next request waits until the other tenants of the priority had their turn."""
        sequence = self.head()
        if sequence is None:
            raise IndexError("nobody waits")
        self._lines[sequence.request.priority].move_to_end(sequence.request.tenant)
        self.remove(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Raises ValueError for one that does not wait."""
        tenants = self._lines.get(sequence.request.priority, OrderedDict())
        line = tenants.get(sequence.request.tenant, deque())
        line.remove(sequence)
        self._size -= 1
        if not line:
            del tenants[sequence.request.tenant]
        if not tenants:
            del self._lines[sequence.request.priority]

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        tenants = self._lines.setdefault(sequence.request.priority, OrderedDict())
        return tenants.setdefault(sequence.request.tenant, deque())
