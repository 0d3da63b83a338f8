"""Which certificates the clients trust."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    import ssl


@cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of this process: usual certificates, or those of ``SSL_CERT_FILE``.

    Reading the certificates takes longer than a call to StEvE, and every run opens clients of its own.
    """
    return httpx2.create_ssl_context()
