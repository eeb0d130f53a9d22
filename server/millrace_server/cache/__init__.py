"""Answers that need no model: exact matches, in this process or in a Redis that the replicas share.

Keys are HMACs, so that neither a key nor its length tells a prompt. Whatever happens to a store, a request only becomes slower.
"""

from millrace_server.cache.answers import Cache
from millrace_server.cache.choice import cache_for

__all__ = ["Cache", "cache_for"]
