"""Where a person is signed in, and the end of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import Count

from ocpp_billing import clock
from ocpp_billing.accounts.audit import record
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from ocpp_billing.accounts.models import User


def sessions_of(user: User) -> QuerySet[UserSession]:
    """Sign-ins that still hold, last seen first. One query: allauth's own list asks several per row."""
    rows: QuerySet[UserSession] = _alive().filter(user=user).order_by("-last_seen_at", "-pk")
    return rows


def count_sessions() -> dict[int, int]:
    """How many sign-ins of each person still hold, by the person's number."""
    return dict(_alive().values_list("user_id").annotate(Count("pk")))


def _alive() -> QuerySet[UserSession]:
    kept = Session.objects.filter(expire_date__gt=clock.now())
    rows: QuerySet[UserSession] = UserSession.objects.filter(session_key__in=kept.values("session_key"))
    return rows


def end_session(session: UserSession, *, by: User) -> None:
    """Sign one browser out."""
    with effect("db commit session"), transaction.atomic():
        session.end()
        record(
            "account.session_ended",
            user=by,
            target=f"user {session.user.email}",
            before={"address": session.ip, "browser": session.user_agent},
        )


def end_sessions(user: User, *, by: User, actor: str = "", but: str | None = None) -> int:
    """Sign a person out everywhere.

    Args:
        user: the person.
        by: who does it.
        actor: who it was in words; default: their e-mail.
        but: key of a session that goes on.

    Returns:
        How many sessions ended; audited when there were any.
    """
    with effect("db commit session"), transaction.atomic():
        ended = drop_sessions(user, but=but)
        if ended:
            record(
                "account.sessions_ended" if by == user else "user.sessions_ended",
                user=by,
                actor=actor,
                target=f"user {user.email}",
                before={"sessions": ended},
            )
    return ended


def drop_sessions(user: User, *, but: str | None = None) -> int:
    """The same as part of another act, which is audited itself, and in its transaction."""
    sessions = [one for one in UserSession.objects.filter(user=user) if one.session_key != but]
    for session in sessions:
        session.end()
    return len(sessions)
