"""Add people and change what they may do. There is always an active admin left."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.accounts.sessions import drop_sessions
from ocpp_billing.effects import effect


class PeopleError(Exception):
    """A person cannot be added or changed as asked; says why and what to do."""


class MayDoMoreError(PeopleError):
    """The change would let somebody in, or do more, and whoever asks may not do that in this way."""


class PeopleConflictError(PeopleError):
    """The address is taken, or nobody would be left to administer."""


def add_person(
    *,
    email: str,
    name: str,
    role: Role,
    password: str | None,
    by: User,
    actor: str = "",
) -> User:
    """Add a person.

    Args:
        email: the name to sign in with; case does not matter.
        name: as shown in the portal.
        role: what they may do.
        password: to sign in with at first; None = they cannot sign in until they were given one.
        by: the admin.
        actor: who it was in words; default: their e-mail.

    Raises:
        PeopleError: when address or password are not acceptable.
        PeopleConflictError: when the address is taken.
    """
    email, name = email.strip().lower(), name.strip()
    try:
        validate_email(email)
    except ValidationError:
        raise PeopleError(_("This is no e-mail address: name@example.org.")) from None
    if not name:
        raise PeopleError(_("The name is missing."))
    if password is not None:
        try:
            validate_password(password, User(email=email, name=name))
        except ValidationError as error:
            raise PeopleError(" ".join(error.messages)) from None
    try:
        with effect("db commit person"), transaction.atomic():
            user = User.objects.create_user(email, password, name=name, role=role)
            record("user.created", user=by, actor=actor, target=f"user {user.email}", after=_snapshot(user))
    except IntegrityError:
        raise PeopleConflictError(
            _("%(email)s is known already. Change that person instead.") % {"email": email}
        ) from None
    return user


def change_person(
    user_id: int,
    *,
    by: User,
    name: str | None = None,
    role: Role | None = None,
    active: bool | None = None,
    actor: str = "",
    may_do_more: bool = True,
) -> User:
    """Change a person's name or role, or close and open the account; None leaves a thing as it is.

    A closed account's sessions end, its tokens are refused as long as it is closed, and a lower role holds
    for its tokens.

    Args:
        user_id: the person.
        by: who does it.
        name: as shown in the portal.
        role: what they may do.
        active: whether they may sign in.
        actor: who it was in words; default: their e-mail.
        may_do_more: whether the role may become a higher one, and a closed account be opened.

    Raises:
        MayDoMoreError: when that is so and must not be.
        User.DoesNotExist: when there is nobody of that number.
        PeopleConflictError: when no active admin would be left.
    """
    with effect("db commit person"), transaction.atomic():
        # All admins, in one order: two who demote each other at the same moment wait for one another.
        admins = User.objects.select_for_update().filter(role=Role.ADMIN, is_active=True).order_by("pk")
        admin_ids = {admin.pk for admin in admins}
        user = User.objects.select_for_update().get(pk=user_id)
        before = _snapshot(user)
        user.name = user.name if name is None else name.strip()
        user.role = user.role if role is None else role
        user.is_active = user.is_active if active is None else active
        raised = not Role(user.role).within(Role(before["role"]))
        if not may_do_more and (raised or (user.is_active and not before["active"])):
            raise MayDoMoreError(_("This would let somebody in, or let them do more."))
        if admin_ids == {user.pk} and not user.is_admin:
            raise PeopleConflictError(_("This is the last admin. Make somebody else an admin first."))
        user.save(update_fields=["name", "role", "is_active"])
        if before["active"] and not user.is_active:
            drop_sessions(user)
        record(
            "user.changed",
            user=by,
            actor=actor,
            target=f"user {user.email}",
            before=before,
            after=_snapshot(user),
        )
    return user


def _snapshot(user: User) -> dict[str, Any]:
    return {"email": user.email, "name": user.name, "role": str(user.role), "active": user.is_active}
