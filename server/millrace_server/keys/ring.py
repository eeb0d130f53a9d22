"""The keys that are valid now. Their file may be swapped while the server runs, as Kubernetes does it; a bad one changes nothing."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from millrace_server.keys.entries import MOST_KEYS, BadKeys, owner_of, parse
from millrace_server.settings import InvalidSettings

MAX_BYTES = 1024 * MOST_KEYS
"""As much as a Kubernetes Secret holds."""
LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class KeyRing(Collector):
    """Register it with a Prometheus registry to have its series scraped."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidSettings when there is no good file: a server that was told to have keys never opens without."""
        self._path = path
        self._complaint: str | None = None
        """What is wrong with the file, when the keys are those of an earlier one."""
        try:
            self._content = _read(path)
            self._entries = parse(self._content)
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
        """Take over a file that says something else than before; links and times do not matter. A bad one is complained of once, looked at
        again, and the keys stay. Raises nothing."""
        try:
            content = _read(self._path)
            if content == self._content and self._complaint is None:
                return
            entries = parse(content)
        except BadKeys as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                what = {"file": str(self._path), "why": str(error)}
                logger.error("the key file is refused, the keys before it stay valid", extra=what)  # noqa: TRY400 - the sentence says it all
            return
        self._content, self._entries, self._complaint = content, entries, None
        logger.info("the key file was read anew", extra={"file": str(self._path), "keys": len(entries)})

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "llm_key_file_valid",
            "1 while the keys are those of API_KEYS_FILE, 0 while it is gone or bad and those before it stay valid.",
            value=float(self._complaint is None),
        )


def _read(path: Path) -> bytes:
    """Raises BadKeys."""
    try:
        if path.exists() and not path.is_file():
            raise BadKeys("it is no file; name the file of the Secret, not its folder")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadKeys(
            f"it cannot be read ({error.strerror}); mount the Secret there, readable for the server's user, or unset the variable"
        ) from None
    if len(content) > MAX_BYTES:
        raise BadKeys(f"it has more than {MAX_BYTES} bytes; remove what is no key")
    return content
