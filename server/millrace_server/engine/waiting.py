"""Who is admitted next: priorities that age, and tenants in turn. Pure decisions, like the scheduler that asks.

A request's rank is fixed when it arrives: its priority, in units of AGEING_SECONDS, plus its time of arrival. Whoever has waited
AGEING_SECONDS longer goes like one of the next better priority, so nobody starves, and no clock is needed to say so.
"""

from collections import OrderedDict
from collections.abc import Iterator

from millrace_server.engine.sequence import Sequence

AGEING_SECONDS = 20.0
"""What one step of priority is worth in waiting."""

Line = OrderedDict[Sequence, None]
"""In order, and whoever leaves from the middle (a cancelled request among ten thousand) need not be searched for."""


def rank(sequence: Sequence) -> float:
    """Lower goes first, and is the last to be preempted."""
    return sequence.request.priority * AGEING_SECONDS + sequence.arrived


class WaitingQueue:
    """One line per tenant in every priority. The priority whose oldest request ranks first is served, and its tenants in turn."""

    def __init__(self) -> None:
        self._lines: dict[int, OrderedDict[str, Line]] = {}
        self._by_id: dict[str, Sequence] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for tenants in self._lines.values() for line in tenants.values() for sequence in line)

    def find(self, request_id: str) -> Sequence | None:
        """The one that waits under this id."""
        return self._by_id.get(request_id)

    def add(self, sequence: Sequence) -> None:
        self._line(sequence)[sequence] = None
        self._by_id[sequence.request.request_id] = sequence
        self._size += 1

    def put_back(self, sequence: Sequence) -> None:
        """A sequence that was admitted and had to leave: it is the next one of its priority."""
        self.add(sequence)
        self._line(sequence).move_to_end(sequence, last=False)
        self._lines[sequence.request.priority].move_to_end(sequence.request.tenant, last=False)

    def head(self) -> Sequence | None:
        """The next one to be admitted."""
        if not self._lines:
            return None
        tenants = min(self._lines.values(), key=lambda tenants: min(rank(next(iter(line))) for line in tenants.values()))
        return next(iter(next(iter(tenants.values()))))

    def pop(self) -> Sequence:
        """Take the head; its tenant's next request waits until the other tenants of the priority had their turn."""
        sequence = self.head()
        if sequence is None:
            raise IndexError("nobody waits")
        self._lines[sequence.request.priority].move_to_end(sequence.request.tenant)
        self.remove(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Raises KeyError for one that does not wait."""
        tenants = self._lines[sequence.request.priority]
        line = tenants[sequence.request.tenant]
        del line[sequence]
        self._by_id.pop(sequence.request.request_id, None)
        self._size -= 1
        if not line:
            del tenants[sequence.request.tenant]
        if not tenants:
            del self._lines[sequence.request.priority]

    def _line(self, sequence: Sequence) -> Line:
        tenants = self._lines.setdefault(sequence.request.priority, OrderedDict())
        return tenants.setdefault(sequence.request.tenant, OrderedDict())
