"""The first process of a PID namespace: reaps what others leave, and starts again what died."""

import os
import time
from collections.abc import Callable

from cluster.process import Child

_PAUSE_SECONDS = 1.0


def unshare(*, with_hostname: bool = True) -> list[str]:
    """The command prefix that gives a process its own namespaces; killing it ends everything inside."""
    return ["unshare", "--mount", "--net", "--pid", *(["--uts"] if with_hostname else []), "--fork", "--kill-child", "--mount-proc"]


def supervise(running: dict[str, Child], restart: Callable[[str], Child]) -> None:
    """Never returns. A child that ends is started again after a pause: a cluster of one machine has nobody else to do it."""
    while True:
        ended, status = os.wait()
        for name, child in running.items():
            if child.process.pid == ended:
                code = os.waitstatus_to_exitcode(status)
                print(f"{time.strftime('%H:%M:%S')} {name} ended with {code}; starting it again", flush=True)
                time.sleep(_PAUSE_SECONDS)
                running[name] = restart(name)
                break
