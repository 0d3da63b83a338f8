"""The first admin: made once, never by accident twice."""

import pytest

from ocpp_billing.accounts.first_admin import InvalidAdminError, NotAnAdminError, create_admin
from ocpp_billing.accounts.models import AuditEntry, Role, User
from tests.portal.conftest import PASSWORD, add_person

pytestmark = pytest.mark.django_db


def test_an_admin_who_can_sign_in_is_made(client):
    user, created = create_admin("Ada@Example.org", PASSWORD, "Ada")

    assert created
    assert (user.email, user.role, user.name) == ("ada@example.org", Role.ADMIN, "Ada")
    answer = client.post("/accounts/login/", {"login": "ada@example.org", "password": PASSWORD})
    assert answer.headers["Location"] == "/"


def test_making_one_is_in_the_audit_log_without_the_password():
    create_admin("ada@example.org", PASSWORD, "Ada", actor="command line (root)")

    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.target) == (
        "user.created",
        "command line (root)",
        "user ada@example.org",
    )
    assert PASSWORD not in str(entry.after)


def test_repeating_it_changes_nothing_not_even_the_password():
    first, _ = create_admin("ada@example.org", PASSWORD, "Ada")
    again, created = create_admin("ADA@example.org", "another password entirely", "Somebody Else")

    assert not created
    assert again == first
    again.refresh_from_db()
    assert again.check_password(PASSWORD)
    assert again.name == "Ada"
    assert AuditEntry.objects.count() == 1


def test_the_password_is_set_anew_when_that_is_asked_for():
    create_admin("ada@example.org", PASSWORD, "Ada")
    user, created = create_admin("ada@example.org", "another password entirely", "Ada", reset_password=True)

    assert not created
    assert User.objects.get(pk=user.pk).check_password("another password entirely")
    assert AuditEntry.objects.first().action == "user.password_reset"


def test_a_password_that_was_set_anew_is_told_to_its_person(mailbox):
    create_admin("ada@example.org", PASSWORD, "Ada")
    create_admin("ada@example.org", PASSWORD + "!", "Ada", reset_password=True, actor="command line (root)")
    (letter,) = mailbox.letters
    assert letter["To"] == "ada@example.org"
    assert "command line (root) set it anew." in letter.get_content()
    assert PASSWORD not in letter.get_content()


def test_a_reset_refuses_a_weak_password_too():
    create_admin("ada@example.org", PASSWORD, "Ada")
    with pytest.raises(InvalidAdminError):
        create_admin("ada@example.org", "short", "Ada", reset_password=True)
    assert User.objects.get().check_password(PASSWORD)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER])
def test_somebody_who_is_no_admin_is_not_made_one(role):
    person = add_person(role)
    with pytest.raises(NotAnAdminError, match="have an admin change the role"):
        create_admin(person.email, PASSWORD, "Ada", reset_password=True)
    person.refresh_from_db()
    assert person.role == role


def test_a_deactivated_admin_is_not_woken():
    person = add_person(Role.ADMIN, is_active=False)
    with pytest.raises(NotAnAdminError, match="deactivated"):
        create_admin(person.email, PASSWORD, "Ada", reset_password=True)
    person.refresh_from_db()
    assert not person.is_active


def test_everything_that_is_missing_is_named_at_once():
    with pytest.raises(InvalidAdminError) as refused:
        create_admin(" ", "", "")
    assert [problem.split()[0] for problem in refused.value.problems] == [
        "ADMIN_EMAIL",
        "ADMIN_PASSWORD",
        "ADMIN_NAME",
    ]


@pytest.mark.parametrize("email", ["ada", "ada@", "@example.org", "ada example.org"])
def test_an_address_that_is_none_is_refused(email):
    with pytest.raises(InvalidAdminError, match=r"ADMIN_EMAIL is .* must be an e-mail address"):
        create_admin(email, PASSWORD, "Ada")


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("tiny7word", "at least 12 characters"),
        ("123456789012345", "entirely numeric"),
        ("ada@example.org", "too similar"),
        ("q1w2e3r4t5y6", "too common"),
    ],
)
def test_a_weak_password_is_refused_with_the_reason(password, says):
    with pytest.raises(InvalidAdminError, match=says) as refused:
        create_admin("ada@example.org", password, "Ada")
    assert password not in str(refused.value)
    assert not User.objects.exists()


def test_no_address_with_capitals_gets_past_the_database():
    from django.db import IntegrityError

    with pytest.raises(IntegrityError, match="app_user_email_lower"):
        User(email="Ada@example.org").save()


def test_what_is_longer_than_the_ledger_takes_is_refused():
    with pytest.raises(InvalidAdminError) as refused:
        create_admin(f"{'x' * 60}@{'y.' * 120}org", PASSWORD, "z" * 20_000)
    assert refused.value.problems[-2:] == [
        "ADMIN_EMAIL must have at most 254 characters.",
        "ADMIN_NAME must have at most 150 characters.",
    ]
    assert not User.objects.exists()
