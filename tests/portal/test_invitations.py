"""Invitations: made by an admin, good once and for a week, by a link that is sent or handed over."""

import html
import re
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from django.test import Client

from ocpp_billing import clock
from ocpp_billing.accounts import invitations
from ocpp_billing.accounts.models import AuditEntry, Invitation, Role, User
from ocpp_billing.accounts.people import PeopleConflictError
from tests.portal.conftest import PASSWORD, add_person
from tests.unit.test_log import logged

pytestmark = pytest.mark.django_db

VERA = {"email": "Vera@Example.org", "name": "Vera", "role": "viewer"}
ACCEPTED = {"name": "Vera V.", "password1": PASSWORD, "password2": PASSWORD}


@pytest.fixture
def admin(signed_in):
    return signed_in(Role.ADMIN)


@pytest.fixture
def invited(admin):
    return invitations.invite(
        email="vera@example.org", name="Vera", role=Role.VIEWER, by=User.objects.get(role=Role.ADMIN)
    )


def path_of(invitation):
    return urlsplit(invitations.link_of(invitation)).path


def text(answer):
    return html.unescape(answer.content.decode())


def actions():
    return list(AuditEntry.objects.order_by("pk").values_list("action", flat=True))


def test_without_a_mail_server_the_admin_gets_the_link_to_hand_over(admin):
    answer = admin.post("/settings/users/invite", VERA)
    assert answer.status_code == 200
    assert "E-mail is not set up. Give this link to Vera yourself" in text(answer)
    link = re.search(r"http://localhost:8000(/invitation/[^\s\"<]+)", text(answer))
    assert link is not None
    assert "invites you as Viewer" in text(Client().get(link[1]))
    assert answer.headers["Cache-Control"].find("no-store") != -1


def test_with_a_mail_server_the_link_is_sent_and_not_shown(admin, mailbox):
    answer = admin.post("/settings/users/invite", VERA, follow=True)
    assert "The invitation is on its way to vera@example.org." in text(answer)
    (letter,) = mailbox.letters
    assert mailbox.recipients == ["<vera@example.org>"]
    assert letter["Subject"] == "OCPP Billing Sync: You are invited"
    assert "The admin invites you to OCPP Billing Sync as Viewer." in letter.get_content()
    (link,) = mailbox.links()
    assert Client().get(urlsplit(link).path).status_code == 200
    assert Invitation.objects.get().sent_at is not None


def test_a_mail_server_that_does_not_take_it_is_named_and_the_link_is_shown(admin, mailbox):
    mailbox.refuses = "RCPT"
    answer = text(admin.post("/settings/users/invite", VERA))
    assert "The e-mail was not sent. 127.0.0.1:" in answer
    assert "/invitation/" in answer
    assert Invitation.objects.get().sent_at is None


def test_a_link_that_is_good_stands_in_no_log(invited):
    def refused():
        assert Client().get(f"{path_of(invited)}/").status_code == 404
        assert Client(enforce_csrf_checks=True).post(path_of(invited), ACCEPTED).status_code == 403

    told = logged(refused)

    assert told.count("/invitation/[hidden]") == 2
    assert path_of(invited) not in told
    assert Client().get(path_of(invited)).status_code == 200


def test_accepting_makes_the_account_signs_in_and_is_audited(invited):
    client = Client()
    answer = client.post(path_of(invited), ACCEPTED)
    assert answer.headers["Location"] == "/"
    user = User.objects.get(email="vera@example.org")
    assert (user.name, user.role) == ("Vera V.", Role.VIEWER)
    assert user.check_password(PASSWORD)
    assert client.get("/").status_code == 200
    assert actions() == ["invitation.created", "invitation.accepted", "account.signed_in"]
    accepted = AuditEntry.objects.get(action="invitation.accepted")
    assert (accepted.user, accepted.address) == (user, "127.0.0.1")
    assert PASSWORD not in str(accepted.after)


def test_a_link_works_once(invited):
    Client().post(path_of(invited), ACCEPTED)
    again = Client()
    for answer in (again.get(path_of(invited)), again.post(path_of(invited), ACCEPTED)):
        assert answer.status_code == 410
        assert "This invitation is not good any more" in text(answer)
    assert User.objects.filter(email="vera@example.org").count() == 1


def test_whatever_is_wrong_with_a_link_the_answer_is_the_same(invited, admin):
    good = path_of(invited)
    answers = {text(Client().get(path)) for path in ("/invitation/none", good + "x", good[:-3] + "abc")}
    clock.install_clock(lambda: invited.expires_at)
    try:
        answers.add(text(Client().get(good)))
    finally:
        clock.install_clock(None)
    admin.post(f"/settings/invitations/{invited.pk}/revoke")
    answers.add(text(Client().get(good)))

    def without_token(answer):
        return re.sub(r'(csrfmiddlewaretoken" value="|name="next" value=")[^"]*', "", answer)

    assert len({without_token(answer) for answer in answers}) == 1


def test_it_is_good_for_a_week(invited, at):
    at(invited.created_at + timedelta(days=7) - timedelta(seconds=1))
    assert Client().get(path_of(invited)).status_code == 200
    at(invited.created_at + timedelta(days=7))
    assert Client().get(path_of(invited)).status_code == 410


@pytest.mark.parametrize("change", [{"is_active": False}, {"role": Role.OPERATOR}], ids=["gone", "demoted"])
def test_it_is_worthless_once_whoever_invited_is_no_admin_any_more(invited, change):
    User.objects.filter(pk=invited.invited_by_id).update(**change)
    answer = Client().post(path_of(invited), ACCEPTED)
    assert answer.status_code == 410
    assert not User.objects.filter(email="vera@example.org").exists()


def test_sending_it_again_makes_the_earlier_link_worthless(invited, admin, mailbox):
    first = path_of(invited)
    answer = admin.post(f"/settings/invitations/{invited.pk}/renew", follow=True)
    assert "on its way" in text(answer)
    (link,) = mailbox.links()
    assert Client().get(first).status_code == 410
    assert Client().get(urlsplit(link).path).status_code == 200
    assert actions()[-1] == "invitation.renewed"


def test_a_revoked_one_makes_place_for_another(invited, admin):
    answer = admin.post(f"/settings/invitations/{invited.pk}/revoke", follow=True)
    assert "is revoked; its link is worthless" in text(answer)
    assert admin.post("/settings/users/invite", VERA).status_code == 200
    assert Invitation.objects.filter(revoked_at=None).count() == 1
    # A second time, from an old page:
    answer = admin.post(f"/settings/invitations/{invited.pk}/revoke", follow=True)
    assert "was accepted or revoked meanwhile" in text(answer)


def test_who_is_known_or_invited_already_is_said_beside_the_address(invited, admin):
    add_person(Role.OPERATOR)
    assert "is invited already" in text(admin.post("/settings/users/invite", VERA))
    known = {"email": "operator@example.org", "name": "O", "role": "viewer"}
    assert "has an account already" in text(admin.post("/settings/users/invite", known))
    assert "valid email" in text(admin.post("/settings/users/invite", {**VERA, "email": "vera"}))


def test_a_weak_password_or_two_different_ones_change_nothing(invited):
    client = Client()
    weak = client.post(path_of(invited), {"name": "Vera", "password1": "short", "password2": "short"})
    assert "at least 12 characters" in text(weak)
    differ = client.post(path_of(invited), {**ACCEPTED, "password2": "another password entirely"})
    assert "The two passwords are not the same." in text(differ)
    assert not User.objects.filter(email="vera@example.org").exists()
    assert client.post(path_of(invited), ACCEPTED).status_code == 302


def test_an_address_that_got_an_account_meanwhile_is_not_taken_over(invited):
    add_person(Role.OPERATOR, "vera@example.org")
    with pytest.raises(PeopleConflictError, match="meanwhile"):
        invitations.accept(path_of(invited).rsplit("/", 1)[1], name="V", password=PASSWORD)
    assert User.objects.get(email="vera@example.org").role == Role.OPERATOR


def test_the_link_needs_the_secret_of_this_installation(invited, settings):
    from django.core.signing import Signer

    forged = Signer(key="another", salt="ocpp_billing.accounts.invitations").sign_object(
        [invited.pk, invited.nonce]
    )
    assert Client().get(f"/invitation/{forged}").status_code == 410


def test_the_list_shows_the_links_to_admins_until_they_are_used(invited, admin):
    shown = text(admin.get("/settings/users"))
    assert invitations.link_of(invited) in shown
    assert "not sent" in shown
    Client().post(path_of(invited), ACCEPTED)
    assert "/invitation/" not in text(admin.get("/settings/users"))
