"""Whether the engine can answer by a schema, found out where it harms nobody."""

from collections import OrderedDict
from hashlib import sha256

import msgspec

from millrace_server.confined.parent import Confined, ConfinedFailed, ConfinedLate
from millrace_server.errors import BadRequest

FIELD = "response_format.json_schema.schema"
MAX_BYTES = 64 * 1024
REMEMBERED = 1024
"""Schemas whose verdict is known, by their hash."""


class SchemaCheck:
    def __init__(self) -> None:
        self._process = Confined("millrace_server.schemas.process", subject="compiling it")
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        """None: it compiles. Else why it does not."""

    async def check(self, schema: str) -> None:
        """Raises BadRequest with what is wrong."""
        if len(schema.encode(errors="surrogatepass")) > MAX_BYTES:
            raise refused(f"it has more than {MAX_BYTES} bytes; leave descriptions out, or ask for less at once")
        digest = sha256(schema.encode(errors="surrogatepass")).digest()
        if digest not in self._verdicts:
            self._verdicts[digest] = await self._verdict(schema)
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(digest)
        if why := self._verdicts[digest]:
            raise refused(why)

    async def close(self) -> None:
        await self._process.close()

    async def _verdict(self, schema: str) -> str | None:
        try:
            await self._process.ask(msgspec.json.encode(schema))
        except ConfinedLate as error:
            raise refused(str(error)) from None  # another time it may not
        except ConfinedFailed as error:
            return str(error)
        return None


def refused(why: str) -> BadRequest:
    return BadRequest(f"{FIELD} is refused: {why}", param=FIELD)
