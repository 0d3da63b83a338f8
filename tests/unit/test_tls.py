"""Certificates are read once and always checked."""

from __future__ import annotations

import ssl

from ocpp_billing.lago.client import LagoClient, LagoSettings
from ocpp_billing.steve.client import SteveClient, SteveSettings
from ocpp_billing.tls import tls_context


def test_certificates_and_names_are_checked():
    context = tls_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_opening_clients_again_reads_no_certificates(monkeypatch):
    tls_context()

    def read(*_args, **_given):
        raise AssertionError("certificates were read again")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", read)
    for _ in range(2):
        SteveClient(SteveSettings(url="https://steve.example.org", key="key")).close()
        LagoClient(LagoSettings(url="https://lago.example.org", api_key="key")).close()
