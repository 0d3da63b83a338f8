"""The first admin, made where nobody can sign in yet: ``ocpp-billing create-admin``.

Safe to repeat, because it stands in start scripts and compose files. What happens to an address that is
already known is decided here, once:

- an active admin: nothing changes, not even the password, unless ``reset_password=True`` asks for it;
- anybody else (operator, viewer, deactivated admin): refused. A command that runs unattended must not
  raise anybody's rights or wake a closed account; an admin does that, visibly, in the portal.
"""

from __future__ import annotations

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.letters import notify
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.accounts.second_factor import remove_second_factor
from ocpp_billing.accounts.sessions import drop_sessions


class CreateAdminError(Exception):
    """No admin was made and nothing was changed.

    Attributes:
        problems: one sentence each, saying what is wrong and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class InvalidAdminError(CreateAdminError):
    """A value is missing, the e-mail address is none, or the password is too weak."""


class NotAnAdminError(CreateAdminError):
    """The address belongs to a person who is not an active admin."""

    def __init__(self, fact: str, cure: str) -> None:
        super().__init__([f"{fact}: nothing was changed. Choose another address, or {cure}."])


def create_admin(
    email: str,
    password: str,
    name: str,
    *,
    reset_password: bool = False,
    remove_two_factor: bool = False,
    actor: str = "command line",
) -> tuple[User, bool]:
    """Make an admin, or find the one that is there.

    Args:
        email: the name to sign in with; case does not matter.
        password: at least 12 characters, not common, not like the name or the address.
        name: as shown in the portal.
        reset_password: give an existing admin this password; ends all of their web sessions.
        remove_two_factor: let an existing admin, who lost phone and recovery codes, sign in without a code.
        actor: who did it, for the audit log.

    Returns:
        The admin, and whether it was made now (False: was there already).

    Raises:
        InvalidAdminError: with one sentence per value that is missing or not acceptable.
        NotAnAdminError: when the address is known but is not an active admin's.
    """
    email, name = email.strip().lower(), name.strip()
    _check_presence(email, password, name)
    known = User.objects.filter(email=email).first()
    if known is None:
        _check_password(password, User(email=email, name=name))
        try:
            with transaction.atomic():
                user = User.objects.create_user(email, password, name=name, role=Role.ADMIN)
                after = {"email": user.email, "name": user.name, "role": str(user.role)}
                record("user.created", actor=actor, target=f"user {user.email}", after=after)
        except IntegrityError:
            # Two containers starting at once: the other one was a moment faster.
            known = User.objects.get(email=email)
        else:
            return user, True
    _check_is_admin(known)
    if reset_password:
        _check_password(password, known)
        with transaction.atomic():
            known.set_password(password)
            known.save(update_fields=["password"])
            drop_sessions(known)
            entry = record("user.password_reset", actor=actor, target=f"user {known.email}")
        notify(
            known,
            _("Your password was changed"),
            _("%(who)s set it anew.") % {"who": entry.actor},
            address=entry.address,
        )
    if remove_two_factor:
        remove_second_factor(known, by=None, actor=actor)
    return known, False


def _check_presence(email: str, password: str, name: str) -> None:
    problems = []
    if not email:
        problems.append("ADMIN_EMAIL is not set: the e-mail address the admin signs in with.")
    else:
        try:
            validate_email(email)
        except ValidationError:
            problems.append(f"ADMIN_EMAIL is {email!r}, but must be an e-mail address: name@example.org.")
    if not password:
        problems.append("ADMIN_PASSWORD is not set: a password of at least 12 characters.")
    if not name:
        problems.append("ADMIN_NAME is not set: the name shown in the portal.")
    for variable, value, column in (("ADMIN_EMAIL", email, "email"), ("ADMIN_NAME", name, "name")):
        most: int | None = getattr(User._meta.get_field(column), "max_length", None)  # noqa: SLF001
        if most is not None and len(value) > most:
            problems.append(f"{variable} must have at most {most} characters.")
    if problems:
        raise InvalidAdminError(problems)


def _check_password(password: str, user: User) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise InvalidAdminError([f"ADMIN_PASSWORD: {message}" for message in error.messages]) from None


def _check_is_admin(user: User) -> None:
    if user.role != Role.ADMIN:
        raise NotAnAdminError(
            f"{user.email} is known already, as {user.role}", "have an admin change the role"
        )
    if not user.is_active:
        raise NotAnAdminError(
            f"{user.email} is an admin whose account is deactivated", "have an admin activate the account"
        )
