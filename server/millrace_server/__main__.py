"""`python -m millrace_server`, `millrace-server`: settings in, exit code out.

0 after a drain, 1 when the server cannot go on (TERMINATION_LOG says why), 2 for a setting that is wrong.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from millrace_server import termination
from millrace_server.engine.messages import Failed
from millrace_server.reference import reference
from millrace_server.settings import InvalidSettings, ServerSettings

EXIT_INVALID_SETTINGS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    # Process 1 of a container ignores a SIGTERM that it has no handler for, and the imports below take a second.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    environment = dict(os.environ)
    environment.update(read_flags(sys.argv[1:] if arguments is None else arguments))
    from millrace_server.keys import KeyRing

    try:
        settings = ServerSettings.from_environment(environment)
        keys = KeyRing(Path(settings.api_keys_file)) if settings.api_keys_file else None
    except InvalidSettings as error:
        sys.stderr.write(f"{error}\n")
        log = environment.get("TERMINATION_LOG") or None
        termination.write(log, Failed(stage="settings", cause="InvalidSettings", hint=str(error)))
        return EXIT_INVALID_SETTINGS

    import asyncio

    import uvloop

    from millrace_server import logs
    from millrace_server.lifecycle import Lifecycle

    async def run() -> int:
        code = await Lifecycle(settings, environment, keys=keys).run()
        sys.stderr.flush()
        # All is said and done. An ordinary exit would wait for the thread that may still be reading a tokenizer.
        os._exit(code)

    logs.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """The variables that the command line sets; a flag wins over the environment."""
    parser = argparse.ArgumentParser(
        prog="millrace-server",
        description="Serve a language model over HTTP. Every setting is an environment variable; a flag wins over it.",
        epilog=f"settings:\n{reference(ServerSettings)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", help="a folder with a transformers model, or a hub name that this machine's cache holds [MODEL_NAME, MODEL_PATH]"
    )
    parser.add_argument("--device", help="cuda or cpu [DEVICE]")
    parser.add_argument("--dtype", help="auto, bfloat16, float16 or float32 [DTYPE]")
    parser.add_argument("--host", help="address of both ports [HOST]")
    parser.add_argument("--port", help="the clients' port [PORT]")
    parser.add_argument("--prometheus-port", help="the internal port: probes, Prometheus, load [PROMETHEUS_PORT]")
    flags = {name.upper(): value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    model = flags.pop("MODEL", None)
    if model is not None and Path(model).is_dir():
        flags |= {"MODEL_NAME": os.environ.get("MODEL_NAME") or Path(model).resolve().name, "MODEL_PATH": str(Path(model).resolve())}
    elif model is not None:
        flags |= {"MODEL_NAME": model, "MODEL_PATH": ""}
    return flags


if __name__ == "__main__":
    sys.exit(main())
