"""What only the replicas of one service can make: the keys of answers, and the seals on them.

The secret comes from CACHE_SECRET, else from the password in REDIS_URL: every replica has either, whoever can merely write to Redis has not
the first, and whoever got in without the password has neither. Services with the same secret share answers; give them different ones if
they should not.
"""

import hashlib
import hmac
from urllib.parse import unquote, urlsplit

from millrace_server.settings import ServerSettings

SEAL_BYTES = hashlib.sha256().digest_size


def shared_secret(settings: ServerSettings) -> bytes | None:
    """32 bytes, the same in all replicas and after a restart; None when the settings hold nothing that others do not know."""
    known = settings.cache_secret or unquote(urlsplit(settings.redis_url or "").password or "")
    return hmac.digest(known.encode(), b"millrace answer cache", hashlib.sha256) if known else None


def cache_key(secret: bytes, *parts: object) -> bytes:
    """HMAC over the parts, each with its length and type in front: no choice of texts makes two lists of parts collide."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode("utf-8", "surrogatepass")
        mac.update(len(encoded).to_bytes(8, "big"))
        mac.update(encoded)
    return mac.digest()


def seal(secret: bytes, key: bytes, value: bytes) -> bytes:
    """The value with a proof in front that we wrote it, and wrote it for this key."""
    return _proof(secret, key, value) + value


def unseal(secret: bytes, key: bytes, sealed: bytes) -> bytes | None:
    """The value; None when somebody else wrote it, or wrote it for another key."""
    value = sealed[SEAL_BYTES:]
    return value if hmac.compare_digest(sealed[:SEAL_BYTES], _proof(secret, key, value)) else None


def _proof(secret: bytes, key: bytes, value: bytes) -> bytes:
    # A secret of its own: what is a proof can never be a key.
    sealing = hmac.digest(secret, b"seal", hashlib.sha256)
    return hmac.digest(sealing, len(key).to_bytes(8, "big") + key + value, hashlib.sha256)
