"""The autoscaler's contract: what GET /internal/load on the internal port says about one replica."""

import msgspec


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Counters only grow while `boot_id` stays the same. A cached answer is an arrival and a completion that never ran."""

    boot_id: str
    """Changes with every start of the process; counters begin at 0 then."""
    uptime_seconds: float
    draining: bool
    """Accepts nothing new and ends soon: no longer capacity."""
    ready: bool
    """The model is loaded and serves."""
    slots: int
    """Requests that run at once."""
    capacity: int
    """Requests in the system, waiting and running, above which new ones are refused."""
    queued: int
    """Requests that wait for a slot now."""
    running: int
    """Requests that hold a slot now."""
    arrivals: int
    """Valid requests so far, the refused ones (503) among them; malformed ones (4xx) are not demand."""
    completed: int
    """Requests so far that held a slot and have ended, however they ended: answered, expired, failed or cancelled by the client; and those
    answered from the cache. Who only waited for a slot is not among them."""
    running_seconds: float
    """Integral of `running` over time: its growth divided by the time between two looks is the mean number running, and divided by
    the growth of `completed` the seconds that a request holds a slot."""
