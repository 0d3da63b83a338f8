"""What web processes share and may forget at any time: refused tokens, and that Lago was asked or is away.

Not Django's default cache, in which allauth counts failed sign-ins: whoever tries tokens from ever new
addresses, or searches for ever new words, would push those counters out of it.
"""

from __future__ import annotations

from django.core.cache import caches
from django.utils.connection import ConnectionProxy

remembered = ConnectionProxy(caches, "remembered")
