"""Alerts to a webhook: signed, to a checked address, never redirected.

The body is JSON. ``OCPP-Billing-Timestamp`` is the time of sending in Unix seconds, and
``OCPP-Billing-Signature`` is ``v1=`` and the hexadecimal HMAC-SHA256, under ``ALERT_WEBHOOK_SECRET``, of
the timestamp, a full stop and the body. ``OCPP-Billing-Message`` is the same for every attempt.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from ocpp_billing import __version__, clock
from ocpp_billing.alerts.channels import ChannelError
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocpp_billing.alerts.channels import Notice

TIMEOUT_S = 10.0
# Where clouds hand out credentials to whoever asks from within, beside the link-local ones.
METADATA = {
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
}

# IPv4-compatible addresses, and the prefixes of NAT64.
ENDING_IN_IPV4 = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
ISATAP = {0x00005EFE, 0x02005EFE}

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class WebhookChannel:
    """One address that alerts are posted to.

    Args:
        url: http or https.
        secret: signs.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._secret = urlsplit(url), secret.encode()
        self._target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")

    def send(self, notice: Notice) -> None:
        """Post one word.

        Raises:
            ChannelError: when the address may not be used, could not be reached, or did not answer 2xx.
        """
        body = msgspec.json.encode(
            {
                "id": notice.message_id,
                "source": notice.source,
                "alert": notice.condition,
                "state": "open" if notice.resolved_at is None else "resolved",
                "grown": notice.grown,
                "title": notice.title,
                "says": notice.says,
                "do": notice.do,
                "opened_at": notice.opened_at,
                "resolved_at": notice.resolved_at,
                "portal": notice.url,
            }
        )
        timestamp = str(int(clock.now().timestamp()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"ocpp-billing-sync/{__version__}",
            "OCPP-Billing-Timestamp": timestamp,
            "OCPP-Billing-Signature": sign(self._secret, timestamp, body),
            "OCPP-Billing-Message": str(notice.message_id),
        }
        host = self._url.hostname or ""
        try:
            with effect("http webhook POST"):
                status = self._post(host, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise ChannelError(f"{host} could not be reached: {error or type(error).__name__}") from error
        if 300 <= status < 400:
            raise ChannelError(
                f"{host} answered {status}: redirects are not followed. Set ALERT_WEBHOOK_URL to where it "
                "leads."
            )
        if not 200 <= status < 300:
            raise ChannelError(f"{host} answered {status}")

    def _post(self, host: str, body: bytes, headers: dict[str, str]) -> int:
        secure = self._url.scheme == "https"
        port = self._url.port or (443 if secure else 80)
        address = checked_address(host, port)
        connection = _Pinned(host, port, address, secure=secure)
        try:
            connection.request("POST", self._target, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature of a body sent at a time."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class _Pinned(http.client.HTTPConnection):
    """A connection to the address that was checked, whatever the name means a moment later."""

    def __init__(self, host: str, port: int, address: str, *, secure: bool) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._address, self._secure = address, secure
        self.default_port = 443 if secure else 80  # so that the Host header leaves it out

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), TIMEOUT_S)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def checked_address(host: str, port: int) -> str:
    """The address of a host to connect to, as it is just now.

    Raises:
        ChannelError: when one of its addresses is not one that alerts may go to.
        OSError: when the name is unknown.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    for address in addresses:
        if is_forbidden(ipaddress.ip_address(address)):
            raise ChannelError(
                f"{host} is {address}, and alerts are not sent to link-local, metadata, multicast or "
                "unspecified addresses. Set ALERT_WEBHOOK_URL to another host.",
                final=True,
            )
    return addresses[0]


def is_forbidden(address: IpAddress) -> bool:
    """Whether nothing that listens there is a webhook: also when an IPv4 address is wrapped in another."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(is_forbidden(inner) for inner in _wrapped(address)):
            return True
        if address.scope_id is not None or address.is_site_local:
            return True
    return (
        address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA
    ) or address == ipaddress.IPv4Address("255.255.255.255")


def _wrapped(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that a gateway or a tunnel may make of an IPv6 one."""
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    for inner in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if inner is not None:
            yield inner
    if any(address in network for network in ENDING_IN_IPV4) and int(last) > 1:  # not :: and ::1
        yield last
    if (int(address) >> 32) & 0xFFFFFFFF in ISATAP:
        yield last
