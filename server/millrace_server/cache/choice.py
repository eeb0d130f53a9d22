"""The cache that the settings ask for."""

import logging
import os

from millrace_server.cache.answers import Cache
from millrace_server.cache.keys import shared_secret
from millrace_server.cache.memory import MemoryStore
from millrace_server.cache.store import NoStore, Store
from millrace_server.settings import CacheType, ServerSettings

logger = logging.getLogger(__name__)


def cache_for(settings: ServerSettings) -> Cache:
    """Asks nobody: a Redis that is not there yet is found by the first requests, and later by itself."""
    secret = (shared_secret(settings) if settings.cache_type is CacheType.redis else None) or os.urandom(32)
    return Cache(_store(settings, secret), kind=settings.cache_type.value, secret=secret)


def _store(settings: ServerSettings, secret: bytes) -> Store:
    match settings.cache_type:
        case CacheType.none:
            return NoStore()
        case CacheType.memory:
            return MemoryStore(max_bytes=settings.cache_max_bytes, ttl=settings.cache_ttl)
        case CacheType.redis:
            if shared_secret(settings) is None:
                logger.warning("answers in Redis are not shared with other replicas: give REDIS_URL a password, or set CACHE_SECRET")
            # The client library takes a third of a second to import.
            from millrace_server.cache.redis import RedisStore

            return RedisStore(str(settings.redis_url), ttl=settings.cache_ttl, secret=secret)
