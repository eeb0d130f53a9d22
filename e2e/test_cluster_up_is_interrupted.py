"""`up` may be stopped at any moment: the next one goes on, and nothing of the first is in its way."""

import os
import subprocess
import sys
from pathlib import Path

from cluster.local.outer import Outer
from cluster.local.provider import Local, why_not
from cluster.process import wait_until

UP = "import sys; from pathlib import Path; from cluster.local.provider import Local; Local(Path(sys.argv[1]), nodes=1).up()"


def test_up_goes_on_after_it_was_killed_on_the_way(tmp_path: Path) -> None:
    assert why_not() is None, why_not()
    cluster = Local(tmp_path)  # it goes on with as many nodes as were asked for
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    first = subprocess.Popen([sys.executable, "-c", UP, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: Outer.recorded(cluster.state) is not None, "the cluster is being started", seconds=60)
        first.kill()
        first.wait()
        started = Outer.recorded(cluster.state)
        cluster.up()
        assert Outer.recorded(cluster.state) == started
        assert cluster.kubectl("get", "nodes", "-o=name").split() == ["node/node-1"]
    finally:
        first.kill()
        first.wait()
        cluster.down()
