"""The caches that web processes share; nothing else empties them between tests that commit."""

from __future__ import annotations

from django.core.cache import caches


def clear_caches():
    """Forget failed sign-ins, refused tokens, and what Lago was asked."""
    for cache in caches.all():
        cache.clear()
