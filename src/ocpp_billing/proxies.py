"""Whether a client goes through the proxy that the environment names.

One rule for StEvE and Lago: ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` count, except towards this very
machine, which a company's proxy can never reach. (The webhook of alerts goes through none: it connects to
the very address that was checked.)
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def heeds_environment(url: str) -> bool:
    """Whether the environment's proxies count for an address: not when it is on the loopback interface.

    Args:
        url: an http(s) address that was checked before.
    """
    return not is_this_machine(urlsplit(url).hostname or "")


def is_this_machine(host: str) -> bool:
    """Whether a host name or address is on the loopback interface; names are not looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
