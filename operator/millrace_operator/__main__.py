"""Start: `python -m millrace_operator`. Everything it is told comes from the environment, see settings.py."""

import asyncio
import os
import sys

from millrace_operator.connection import NoCluster
from millrace_operator.log import log_to_stderr
from millrace_operator.process import run
from millrace_operator.settings import OperatorSettings
from millrace_server.settings import InvalidSettings


def main() -> None:
    try:
        settings = OperatorSettings.from_environment(os.environ)
    except InvalidSettings as error:
        sys.stderr.write(f"millrace-operator: {error}\n")
        sys.exit(2)
    log_to_stderr(settings.log_level)
    code = 1
    with asyncio.Runner() as runner:
        try:
            code = runner.run(run(settings))
        except NoCluster as error:
            sys.stderr.write(f"millrace-operator: {error}\n")
            code = 2
        # kopf's watches need seconds to be cancelled, and hold nothing that must be put away.
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
