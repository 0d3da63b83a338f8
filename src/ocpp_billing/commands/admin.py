"""``ocpp-billing create-admin``: the first person who may sign in."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

from ocpp_billing.commands.ground import DONE, CommandError, Commands, UsageError, actor, ledger, note, out
from ocpp_billing.config import is_text, read_environment

if TYPE_CHECKING:
    import argparse

    from ocpp_billing.config import Config

# What changes how an admin signs in is told to them by e-mail; a slow mail server gets so long.
LETTERS_WITHIN_S = 30.0


def add_commands(commands: Commands) -> None:
    """Add ``create-admin``."""
    added = commands.add(
        "create-admin",
        create_admin,
        "create the first admin, from ADMIN_EMAIL, ADMIN_PASSWORD and ADMIN_NAME, or prompts",
        "Safe to repeat: an admin who is there already is left as is.",
    )
    added.add_argument("--reset-password", action="store_true", help="set an existing admin's password anew")
    added.add_argument(
        "--remove-two-factor",
        action="store_true",
        help="let an existing admin, who lost phone and recovery codes, sign in by password alone",
    )


def create_admin(config: Config, args: argparse.Namespace) -> int:
    """Create the first admin from the environment, ``.env`` or prompts."""
    given = read_environment()
    for variable in ("ADMIN_EMAIL", "ADMIN_NAME", "ADMIN_PASSWORD"):
        if not is_text(given.get(variable, "")):
            raise UsageError(f"{variable} is no text in {sys.getfilesystemencoding()}.")
    email = given.get("ADMIN_EMAIL") or _asked("E-mail: ", "ADMIN_EMAIL")
    name = given.get("ADMIN_NAME") or _asked("Name: ", "ADMIN_NAME")
    password = given.get("ADMIN_PASSWORD") or _asked("Password: ", "ADMIN_PASSWORD", secret=True)
    with ledger(config):
        from ocpp_billing.accounts import first_admin, letters

        try:
            user, made = first_admin.create_admin(
                email,
                password,
                name,
                reset_password=args.reset_password,
                remove_two_factor=args.remove_two_factor,
                actor=actor(),
            )
        except first_admin.InvalidAdminError as error:
            raise UsageError(str(error)) from error
        except first_admin.NotAnAdminError as error:
            raise CommandError(str(error)) from error
        for sentence in letters.finish(LETTERS_WITHIN_S):
            note(sentence)
    if made:
        out(f"Admin {user.email} created. Sign in at {config.auth_url}{_unless_told_otherwise()}")
        return DONE
    changed = [
        what
        for asked, what in (
            (args.reset_password, "the password was set anew"),
            (args.remove_two_factor, "signing in takes no code any more"),
        )
        if asked
    ]
    out(f"Admin {user.email} was there already; {', '.join(changed) or 'nothing was changed'}.")
    return DONE


def _unless_told_otherwise() -> str:
    """What to add to an address that nobody set."""
    if read_environment().get("AUTH_URL"):
        return ""
    return " (AUTH_URL is not set: with another --port of web or up, at that port)"


def _asked(prompt: str, variable: str, *, secret: bool = False) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"{variable} is not set, and there is no terminal to ask on.")
    try:
        return getpass.getpass(prompt) if secret else input(prompt)
    except EOFError:  # Ctrl-D
        raise UsageError(f"{variable} is not set, and was not answered.") from None
