"""Writes what is generated from the table of settings: ``python -m tools.settings_documents``.

``.env.example`` and ``docs/reference/settings.md`` come from ``ocpp_billing.config``; a test compares them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ocpp_billing.config import describe_settings

ROOT = Path(__file__).parents[1]

EXAMPLE_HEAD = """\
# Every setting of OCPP Billing Sync, with its default. Copy this file to .env and remove the # before
# what you set. What the environment sets counts more than this file; an empty value counts as unset.
# To connect, set STEVE_API_URL, STEVE_API_KEY, STEVE_API_USERNAME (StEvE >= 3.8), LAGO_API_KEY, and
# LAGO_API_URL when Lago is your own. Written by: python -m tools.settings_documents
"""

REFERENCE_HEAD = """\
# Settings

<!-- Written by: python -m tools.settings_documents -->

Settings come from environment variables, and from the file `.env` in the current folder for those that the
environment does not set; `OCPP_BILLING_ENV_FILE` names another file, and empty means none. An empty value
counts as unset. All of them are checked when a command starts: what is malformed is named, together with what
it should look like, and nothing is done.

[.env.example](../../.env.example) has the same settings to copy from.
"""

# Not settings of the product: read by `ocpp-billing create-admin` only.
ADMIN = [
    ("ADMIN_EMAIL", "E-mail address that the first admin signs in with"),
    ("ADMIN_PASSWORD", "Password of the first admin; better given for that one command than kept in a file"),
    ("ADMIN_NAME", "Name of the first admin"),
]

# Not settings of the product: read by docker-compose.yml only.
COMPOSE = [
    (
        "POSTGRES_PASSWORD",
        "",
        "Password of the database, required: the output of openssl rand -hex 24, say (a $ in it needs '...')",
    ),
    ("APP_PUBLISH", "127.0.0.1:8000", "Address and port of the host on which the portal is published"),
    ("IMAGE_TAG", "latest", "Tag of the image that is built and run"),
    ("SETTINGS_FILE", ".env", "File that the containers take all other settings from"),
]


def env_example() -> str:
    """The text of ``.env.example``: every setting as a comment, with its default and its meaning."""
    parts = [EXAMPLE_HEAD]
    for group, settings in describe_settings():
        parts.append(f"# -- {group} " + "-" * (100 - len(group)) + "\n")
        parts += [f"# {meaning}.\n#{name}={default}\n" for name, default, meaning in settings]
    parts.append("# -- First admin: read by `ocpp-billing create-admin` only " + "-" * 48 + "\n")
    parts += [f"# {meaning}.\n#{name}=\n" for name, meaning in ADMIN]
    parts.append("# -- Docker Compose: read by docker-compose.yml only " + "-" * 55 + "\n")
    parts += [f"# {meaning}.\n#{name}={default}\n" for name, default, meaning in COMPOSE]
    return "\n".join(parts)


def settings_reference() -> str:
    """The text of ``docs/reference/settings.md``."""
    lines = REFERENCE_HEAD.splitlines()
    for group, settings in describe_settings():
        lines += ["", f"## {group}", "", "| Variable | Default | Meaning |", "|---|---|---|"]
        lines += [
            _row(name, f"`{default}`" if default else "", meaning) for name, default, meaning in settings
        ]
    lines += [
        "",
        "## First admin",
        "",
        "Read by `ocpp-billing create-admin` only, which asks for what is not set.",
    ]
    lines += ["", "| Variable | Meaning |", "|---|---|"]
    lines += [_row(name, meaning) for name, meaning in ADMIN]
    lines += ["", "## Docker Compose", "", "Read by `docker-compose.yml` only."]
    lines += ["", "| Variable | Default | Meaning |", "|---|---|---|"]
    lines += [_row(name, f"`{default}`" if default else "", meaning) for name, default, meaning in COMPOSE]
    return "\n".join(lines) + "\n"


def _row(name: str, *cells: str) -> str:
    return "| " + " | ".join([f"`{name}`", *(cell.replace("|", "\\|") for cell in cells)]) + " |"


def documents() -> dict[Path, str]:
    """The generated files and what they should say."""
    return {
        ROOT / ".env.example": env_example(),
        ROOT / "docs" / "reference" / "settings.md": settings_reference(),
    }


def main() -> int:
    """Write the files."""
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
