"""The confined process's own side: answers lines of standard input, one by one, within limits.

Once it serves it opens no file and starts no process; the kernel ends it when a line takes too long. So import everything before.
"""

import resource
import signal
import sys
from collections.abc import Callable

import msgspec

from millrace_server.confined.messages import Refused, Said


class Refusal(Exception):
    """Why a line has no answer; in words for the client."""


def serve(answer: Callable[[bytes], str], *, cpu_seconds: float, memory_bytes: int) -> None:
    """Until standard input ends. `answer` raises Refusal; `cpu_seconds` are for one line."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        # The default action of its signal ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        said: Said | Refused
        try:
            said = Said(answer(line))
            encoded = msgspec.json.encode(said)
        except Refusal as error:
            encoded = msgspec.json.encode(Refused(str(error)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(encoded + b"\n")
        sys.stdout.buffer.flush()
