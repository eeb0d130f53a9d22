"""What RFC 9112 forbids in a request's head and the parser lets through. Pure.

Whatever two servers could read differently is refused: behind a proxy, the difference is somebody else's request.
"""

import re
from collections.abc import Iterable

VERSIONS = frozenset({"1.0", "1.1"})
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]{0,5})?")


def head_fault(headers: Iterable[tuple[bytes, bytes]], *, version: str) -> str | None:
    """What is wrong, as the end of a sentence; None for a sound head. Names are in lower case."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if version not in VERSIONS:
        return "its version must be HTTP/1.0 or HTTP/1.1"
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        return f"it has {len(hosts)} Host headers; it needs exactly one"
    if hosts and not HOST.fullmatch(hosts[0]):
        return "its Host must be a name or an address, with or without a port"
    if codings and (codings != [b"chunked"] or version == "1.0"):
        return "its Transfer-Encoding must be chunked, once and alone, in HTTP/1.1"
    if codings and lengths:
        return "it has both Transfer-Encoding and Content-Length"
    if len(lengths) > 1:
        return "it has more than one Content-Length"
    return None
