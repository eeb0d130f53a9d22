"""The keys that are valid now. The file may be swapped while the server runs, as Kubernetes does with a Secret; a bad one changes nothing."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from millrace_server.keys.entries import MOST_KEYS, BadKeys, Entry, owner_of, parse
from millrace_server.settings import InvalidSettings

MAX_BYTES = 1024 * MOST_KEYS
LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)

Version = tuple[int, int, int, int, int]
"""What differs between two files, or two states of one: device, inode, size, times of change."""


class KeyRing(Collector):
    """Register it with a Prometheus registry to have its series scraped."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidSettings when there is no good file: a server that was told to have keys never opens without."""
        self._path = path
        self._complaint: str | None = None
        """What is wrong with the file, when the keys are those of an earlier one."""
        try:
            self._version: Version | None = _version(path)
            self._entries = _read(path)
        except BadKeys as error:
            raise InvalidSettings(f"API_KEYS_FILE={str(path)!r} is refused: {error}") from None

    def owner(self, key: bytes) -> str | None:
        return owner_of(key, self._entries)

    async def follow(self) -> None:
        """Look for a new file, for ever; a disk that hangs keeps only this from working."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Take over a file that changed. A bad one is complained of once, looked at again, and the keys stay. Raises nothing."""
        try:
            # Before the reading: a change in between is seen by the next look.
            version = _version(self._path)
            if version == self._version and self._complaint is None:
                return
            entries = _read(self._path)
        except BadKeys as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                logger.error("the key file is refused, the keys before it stay valid", extra={"file": str(self._path), "why": str(error)})
            return
        self._version, self._entries, self._complaint = version, entries, None
        logger.info("the key file was read anew", extra={"file": str(self._path), "keys": len(entries)})

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "llm_key_file_valid",
            "1 while the keys are those of API_KEYS_FILE, 0 while it is gone or bad and those before it stay valid.",
            value=float(self._complaint is None),
        )


def _version(path: Path) -> Version:
    """Of what `path` leads to, through all links. Raises BadKeys."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(error) from None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> tuple[Entry, ...]:
    """Raises BadKeys."""
    try:
        if not path.is_file():
            raise BadKeys("it is no file; name the file of the Secret, not its folder")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(error) from None
    if len(content) > MAX_BYTES:
        raise BadKeys(f"it has more than {MAX_BYTES} bytes; remove what is no key")
    try:
        return parse(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadKeys(f"line {line} is no UTF-8 text; save the file as UTF-8") from None


def _unreadable(error: OSError) -> BadKeys:
    return BadKeys(f"it cannot be read ({error.strerror}); mount the Secret there, readable for the server's user, or unset the variable")
