"""The secret that signs sessions outlives restarts, and a disk that was full when it was made."""

from __future__ import annotations

import stat

from ocpp_billing.embedded.auth_secret import auth_secret


def test_it_is_made_once_for_its_owner_alone(tmp_path):
    secret = auth_secret(tmp_path / "data")
    assert len(secret) >= 32
    assert auth_secret(tmp_path / "data") == secret
    (file,) = (tmp_path / "data").glob("auth-secret*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_empty_file_is_made_anew(tmp_path):
    (tmp_path / "auth-secret").touch(mode=0o600)
    secret = auth_secret(tmp_path)
    assert len(secret) >= 32
    assert auth_secret(tmp_path) == secret
