"""The secret that signs sessions, made once and kept in the data folder."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from ocpp_billing.embedded.postgres import make_data_dir


def auth_secret(data_dir: Path) -> str:
    """The secret of this data folder; made, readable by its owner alone, when there is none.

    Raises:
        DataFolderError: when the folder cannot be made.
        OSError: when it cannot be written.
    """
    path = data_dir / "auth-secret"
    make_data_dir(data_dir)
    if not path.exists() or not path.read_text().strip():
        # Whole or not at all, also where the disk is full or the power fails in between.
        descriptor, new = tempfile.mkstemp(dir=data_dir, prefix="auth-secret-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(new).replace(path)
        except OSError:
            Path(new).unlink(missing_ok=True)
            raise
    return path.read_text().strip()
