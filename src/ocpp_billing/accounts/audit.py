"""Write down what a person did. Entries are never deleted, and only pseudonyms of tags ever change one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.account.adapter import get_adapter
from allauth.core import context
from django.core.exceptions import PermissionDenied
from django.utils.translation import gettext as _

from ocpp_billing.accounts.models import AuditEntry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from django.db.models import QuerySet
    from django.http import HttpRequest

    from ocpp_billing.accounts.models import User

# Characters of a person's own words, wherever they are typed.
NOTE_LENGTH = 2_000


def refuse_long(note: str, error: type[Exception]) -> None:
    """Keep no note that is longer than :data:`NOTE_LENGTH`, from wherever it comes.

    Raises:
        Exception: ``error``, the caller's own, which says so.
    """
    if len(note) > NOTE_LENGTH:
        raise error(_("A note has at most %(n)s characters.") % {"n": f"{NOTE_LENGTH:,}"})


def record(
    action: str,
    *,
    user: User | None = None,
    actor: str = "",
    target: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    note: str = "",
    request: HttpRequest | None = None,
) -> AuditEntry:
    """Add one entry, in the caller's database transaction: the act and its record stand or fall together.

    Args:
        action: subject and verb, such as ``mapping.create`` or ``delivery.pause``.
        user: who did it; None where no account stands behind it, then ``actor`` says who it was.
        actor: who it was in words, such as ``command line (root)``; default: the user's e-mail.
        target: what it was done to, such as ``tag TAG-7`` or ``session:main:4711``.
        before: JSON of what was true before, or None. Never a secret: this is shown to every admin.
        after: JSON of what is true now, or None. Never a secret.
        note: why, in the person's own words.
        request: the web request it came with; its address is kept. Default: the one that is being
            answered, if any.

    Raises:
        ValueError: when neither ``user`` nor ``actor`` says who it was.
    """
    request = request or context.request
    who = actor or (user.email if user is not None else "")
    if not who:
        raise ValueError("an audit entry needs a user or an actor")
    return AuditEntry.objects.create(
        action=action,
        user=user,
        actor=who,
        target=target,
        before=before,
        after=after,
        note=note,
        address=None if request is None else client_address(request),
    )


def find_entries(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    user_id: int | None = None,
    who: str | None = None,
    action: str | None = None,
    target: str | None = None,
    mentions: str | None = None,
) -> QuerySet[AuditEntry]:
    """Entries, newest first; what is None does not matter.

    Args:
        since: at or after this instant.
        until: before this instant.
        user_id: by this person.
        who: part of the actor's name, in any case.
        action: the code or how it begins: ``mapping.create``, ``mapping.``.
        target: exactly.
        mentions: words of which each is a part of the target, in any case: ``TAG-7``, ``tag TAG-7``.
    """
    given = {
        "at__gte": since,
        "at__lt": until,
        "user_id": user_id,
        "actor__icontains": who,
        "action__startswith": action,
        "target": target,
    }
    rows = AuditEntry.objects.filter(**{name: value for name, value in given.items() if value is not None})
    for word in (mentions or "").split():
        rows = rows.filter(target__icontains=word)
    return rows.order_by("-pk")


def client_address(request: HttpRequest) -> str | None:
    """Where a request comes from; None where the server does not know, as behind a Unix socket."""
    try:
        address: str = get_adapter(request).get_client_ip(request)
    except PermissionDenied:
        return None
    return address
