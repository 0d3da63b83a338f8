"""The environment's proxies count for both clients alike, and never towards this machine itself."""

from __future__ import annotations

import pytest

from ocpp_billing.lago.client import LagoClient, LagoSettings
from ocpp_billing.proxies import heeds_environment
from ocpp_billing.steve.client import SteveClient, SteveSettings

HERE = [
    "http://localhost:8180/steve",
    "http://127.0.0.1:3000",
    "http://127.9.8.7",
    "https://[::1]:8443/steve",
]
ELSEWHERE = ["https://steve.example.org/steve", "http://10.0.0.7:8180", "https://localhost.example.org"]


def proxies_of(url):
    """Proxies that each client would go through towards an address."""
    clients = (
        SteveClient(SteveSettings(url=url, key="secret")),
        LagoClient(LagoSettings(url=url, api_key="key")),
    )
    for client in clients:
        with client:
            yield {type(each).__name__ for each in client._http._mounts.values() if each is not None}


@pytest.fixture(autouse=True)
def company(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name.upper(), "")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")


@pytest.mark.parametrize("url", HERE)
def test_nothing_on_this_machine_is_asked_through_a_proxy(url):
    assert not heeds_environment(url)
    assert list(proxies_of(url)) == [set(), set()]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_everything_else_is_asked_through_the_proxy_of_the_environment(url):
    assert heeds_environment(url)
    assert list(proxies_of(url)) == [{"HTTPTransport"}, {"HTTPTransport"}]


def test_what_no_proxy_names_is_asked_directly(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "steve.example.org")
    with SteveClient(SteveSettings(url="https://steve.example.org", key="secret")) as client:
        assert None in client._http._mounts.values()
