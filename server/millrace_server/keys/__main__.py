"""`python -m millrace_server.keys new NAME >> FILE`: the line for the key file on stdout, the key, once, on stderr."""

import argparse
import sys
from collections.abc import Sequence

from millrace_server.keys.entries import NAME_RULE, is_name, make


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m millrace_server.keys", description="Make API keys for API_KEYS_FILE.")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="print a line for the key file, and, on stderr, the key; it is kept nowhere")
    new.add_argument("name", type=_name, help=f"whose key it is: {NAME_RULE}")
    key, line = make(parser.parse_args(arguments).name)
    sys.stderr.write(f"{key}\n")
    sys.stdout.write(f"{line}\n")
    return 0


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"a name has {NAME_RULE}")
    return text


if __name__ == "__main__":
    sys.exit(main())
