"""A peer without a model, run as a process of its own: `dies` ends at its first request, `deaf` stays when its standard input ends."""

import os
import signal
import sys

import msgspec

from engine_benchmark.lines import Ask, Hello, Told


def say(message: Hello | Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    way = sys.argv[1]
    if way == "mute":
        sys.exit("no such model")
    say(Hello("float32", 1))
    for line in sys.stdin.buffer:
        ask = msgspec.json.decode(line, type=Ask)
        if way == "dies":
            os._exit(1)
        for token in range(1, ask.max_tokens + 1):
            say(Told([ask.number], [ask.number] if token == ask.max_tokens else []))
    if way == "deaf":
        signal.pause()


if __name__ == "__main__":
    main()
