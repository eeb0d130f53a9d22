"""`python -m cluster up [NODES]|down|status|purge|load IMAGE|tool NAME|kubectl …`: the cluster of this checkout from the command line."""

import os
import subprocess
import sys

from cluster import cache
from cluster.binaries import CannotBuild
from cluster.cache import NotOurs
from cluster.local.slot import SLOTS, Slot, has_free_lock
from cluster.packages import MissingTool, tool
from cluster.process import NotReady
from cluster.provider import STATE, NoCluster, Provider, choose, present
from cluster.push import NoSuchImage

USAGE = 64
"""The exit status of a command line that makes no sense (sysexits.h)."""


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status."""
    match arguments:
        case ["up"]:
            print(choose().up())
        case ["up", nodes] if nodes.isdecimal():
            print(choose(nodes=int(nodes)).up())
        case ["down"]:
            if provider := present():
                provider.down()
        case ["purge"]:
            running = [str(slot.number) for slot in map(Slot, range(SLOTS)) if not has_free_lock(slot)]
            if running:
                raise NoCluster(f"clusters of other checkouts still use the cache (slots {', '.join(running)}): take them down first")
            cache.purge()
        case ["status"]:
            provider = present()
            print(provider.status() if provider else "down")
        case ["load", image]:
            print(_running().load(image))
        case ["tool", name]:
            print(tool(name))
        case ["kubectl", *rest]:
            _running()
            environment = {**os.environ, "KUBECONFIG": str(STATE / "kubeconfig")}
            return subprocess.run([str(tool("kubectl")), *rest], env=environment, check=False).returncode
        case _:
            print(__doc__, file=sys.stderr)
            return USAGE
    return 0


def _running() -> Provider:
    provider = present()
    if provider is None:
        raise NoCluster("this checkout has no cluster; bring one up with `make cluster`")
    return provider


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (NoCluster, NotReady, MissingTool, CannotBuild, NoSuchImage, NotOurs) as refusal:
        sys.exit(f"cluster: {refusal}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"cluster: {failure}\n{failure.stderr or ''}")
    except KeyboardInterrupt:
        sys.exit("cluster: interrupted; the same command goes on where this one stopped")
