"""API tokens: made once, shown once, kept as a hash.

A token is ``obs_``, 43 characters that carry 256 random bits, and 6 characters of checksum, in digits and
letters: a scanner that finds one in a repository recognises it without asking us, and a mistyped one is
refused without asking the database.

Kept is the SHA-256 of it. A slow, salted hash is for passwords, which people choose and others can guess;
256 random bits cannot be guessed however fast the hash is, and a token is checked with every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.letters import notify
from ocpp_billing.accounts.models import ApiToken, Role
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.accounts.models import User

PREFIX = "obs_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_BYTES, _SECRET_LENGTH, _CHECKSUM_LENGTH = 32, 43, 6
_FORM = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}")
# How exact "last used" is: a busy token must not write a row with every request.
LAST_USE_EVERY = timedelta(minutes=1)
MAX_NAME_LENGTH = 100
# Of a token of which nobody says how long it shall live.
DEFAULT_LIFETIME = timedelta(days=90)


class TokenError(Exception):
    """A token cannot be made as asked; says why and what to do."""


def usable(of: str = "") -> Q:
    """What tokens that work now have in common: neither revoked nor expired.

    Args:
        of: how a query comes to them, ``api_tokens__``; default: it is about them.
    """
    lives = Q((f"{of}expires_at", None)) | Q((f"{of}expires_at__gt", clock.now()))
    return Q((f"{of}revoked_at", None)) & lives


def generate_token() -> str:
    """A new random token."""
    number = int.from_bytes(secrets.token_bytes(_SECRET_BYTES))
    body = PREFIX + _base62(number, _SECRET_LENGTH)
    return body + _checksum(body)


def is_well_formed(text: str) -> bool:
    """Whether a text looks like one of our tokens, its checksum included."""
    if not _FORM.fullmatch(text):
        return False
    return _checksum(text[:-_CHECKSUM_LENGTH]) == text[-_CHECKSUM_LENGTH:]


def issue_token(
    user: User,
    *,
    name: str,
    role: Role,
    expires_at: datetime | None,
    actor: str = "",
) -> tuple[ApiToken, str]:
    """Make a token for a person, who is told by e-mail where that is set up.

    Args:
        user: whose token it is; what is done with it is done by them.
        name: what it is for, in the person's words.
        role: what it may do; never more than the person may, now and later.
        expires_at: from when on it is refused; None = when it is revoked.
        actor: who asked for it where no account stands behind the act.

    Returns:
        The token's row and the token itself, which is never to be had again.

    Raises:
        TokenError: when the role is above the person's, or name or expiry make no sense.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise TokenError(
            _("Give the token a name of 1 to %(n)s characters: what it is for.") % {"n": MAX_NAME_LENGTH}
        )
    if not Role(role).within(Role(user.role)):
        raise TokenError(
            _("You are %(yours)s: a token of yours cannot be %(role)s. Choose a lower role.")
            % {"yours": user.get_role_display(), "role": Role(role).label}
        )
    if expires_at is not None and expires_at <= clock.now():
        raise TokenError(_("The token would be expired at once: choose a later date."))
    text = generate_token()
    with effect("db commit token"), transaction.atomic():
        token = ApiToken.objects.create(
            user=user,
            name=name,
            role=role,
            digest=_digest(text),
            hint=text[-4:],
            expires_at=expires_at,
            created_at=clock.now(),
        )
        entry = record(
            "token.created",
            user=user,
            actor=actor,
            target=f"token {token.pk}",
            after={
                "name": name,
                "role": str(role),
                "expires_at": None if expires_at is None else expires_at.isoformat(),
            },
        )
    notify(
        user,
        _("An API token was made"),
        _("The token “%(name)s” was made in your name, with the role %(role)s. The portal lists yours.")
        % {"name": name, "role": token.get_role_display()},
        address=entry.address,
    )
    return token, text


def authenticate_token(text: str) -> ApiToken | None:
    """The token, with its person, if it is valid now; its last use is noted.

    Unknown, revoked, expired, and of a deactivated person are one answer: None.
    """
    if not is_well_formed(text):
        return None
    now = clock.now()
    token = (
        ApiToken.objects.select_related("user")
        .filter(usable(), digest=_digest(text), user__is_active=True)
        .first()
    )
    if token is not None and (token.last_used_at is None or token.last_used_at <= now - LAST_USE_EVERY):
        # Conditional, so that of several requests at once one writes.
        ApiToken.objects.filter(pk=token.pk, last_used_at=token.last_used_at).update(last_used_at=now)
        token.last_used_at = now
    return token


def revoke_token(token: ApiToken, *, by: User, actor: str = "") -> None:
    """Refuse a token from now on; a second time changes nothing."""
    with effect("db commit token"), transaction.atomic():
        revoked = ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=clock.now())
        if revoked:
            record(
                "token.revoked",
                user=by,
                actor=actor,
                target=f"token {token.pk}",
                before={"name": token.name, "role": token.role, "user": token.user.email},
            )
    token.refresh_from_db(fields=["revoked_at"])


def revoke_tokens(user: User, *, by: User, actor: str = "") -> int:
    """Revoke all tokens of a person; returns how many."""
    with transaction.atomic():
        tokens = list(ApiToken.objects.select_related("user").filter(user=user, revoked_at=None))
        for token in tokens:
            revoke_token(token, by=by, actor=actor)
    return len(tokens)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _digit in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
