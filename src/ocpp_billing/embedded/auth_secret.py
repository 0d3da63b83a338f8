"""The secret that signs sessions, made once and kept in the data folder."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from ocpp_billing.embedded.postgres import make_data_dir

if TYPE_CHECKING:
    from pathlib import Path


def auth_secret(data_dir: Path) -> str:
    """The secret of this data folder; made, readable by its owner alone, when there is none.

    Raises:
        OSError: when the folder cannot be written.
    """
    path = data_dir / "auth-secret"
    make_data_dir(data_dir)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        secret = secrets.token_urlsafe(48)
        file.write(secret + "\n")
    return secret
