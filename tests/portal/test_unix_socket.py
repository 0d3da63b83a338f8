"""Behind a Unix socket people can sign in, each by the address that the proxy has seen."""

from __future__ import annotations

import asyncio

import pytest
from allauth.account.adapter import get_adapter
from django.core.handlers.asgi import ASGIRequest

from ocpp_billing.accounts.audit import client_address
from ocpp_billing.unix_socket import name_clients


def request_as(client, *headers):
    """What Django sees of a request that came from a client, None = through a Unix socket."""
    seen = []

    async def application(scope, receive, send):
        seen.append(ASGIRequest(scope, None))

    scope = {
        "type": "http", "method": "GET", "path": "/", "query_string": b"", "client": client,
        "headers": [(b"x-forwarded-for", value) for value in headers],
    }  # fmt: skip
    asyncio.run(name_clients(application)(scope, None, None))
    return seen[0]


@pytest.mark.parametrize("client", [None, ("", 0)])
@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ((b"203.0.113.5",), "203.0.113.5"),
        ((b"10.0.0.1, 203.0.113.5",), "203.0.113.5"),  # the first one is what the client claims
        ((b"10.0.0.1", b"2001:db8::1"), "2001:db8::1"),
        ((b"unknown",), "0.0.0.0"),
        ((), "0.0.0.0"),
    ],
)
def test_a_request_through_a_unix_socket_has_the_address_that_the_proxy_saw(client, headers, address):
    request = request_as(client, *headers)
    assert get_adapter(request).get_client_ip(request) == address  # refused with 403 before
    assert client_address(request) == address


def test_over_tcp_nobody_is_believed():
    assert client_address(request_as(("198.51.100.7", 4711), b"203.0.113.5")) == "198.51.100.7"
