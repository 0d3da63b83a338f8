"""A forgotten password: a link by e-mail or from an admin; nobody learns who has an account."""

import html
import re
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from django.test import Client

from ocpp_billing.accounts import letters, recovery
from ocpp_billing.accounts.models import AuditEntry, Role, User
from tests.portal.conftest import BACKEND, PASSWORD, add_person

pytestmark = pytest.mark.django_db

NEW = "a completely new password"


def text(answer):
    return html.unescape(answer.content.decode())


def ask(email, client=None):
    return (client or Client()).post("/accounts/password/reset/", {"email": email})


def choose(link, password=NEW, client=None):
    client = client or Client()
    form = client.get(urlsplit(link).path, follow=True)
    action = re.search(r'action="(/accounts/password/reset/key/[^"]+)"', text(form))
    assert action is not None, text(form)
    return client.post(action[1], {"password1": password, "password2": password})


def test_by_e_mail(mailbox):
    person = add_person(Role.OPERATOR)
    elsewhere = Client()
    elsewhere.force_login(person, BACKEND)
    assert ask("Operator@example.org").headers["Location"] == "/accounts/password/reset/done/"
    (letter,) = mailbox.letters
    assert letter["To"] == "operator@example.org"
    (link,) = mailbox.links()
    assert choose(link).headers["Location"] == "/accounts/login/"

    person.refresh_from_db()
    assert person.check_password(NEW)
    assert elsewhere.get("/").status_code == 302
    assert "Your password was changed" in mailbox.letters[-1]["Subject"]
    said = list(AuditEntry.objects.order_by("pk").values_list("action", "actor", "target", "address"))
    assert said == [
        ("account.reset_requested", "sign-in page", "user operator@example.org", "127.0.0.1"),
        ("account.password_reset", "operator@example.org", "user operator@example.org", "127.0.0.1"),
    ]


def test_a_link_works_once(mailbox):
    add_person(Role.OPERATOR)
    ask("operator@example.org")
    (link,) = mailbox.links()
    choose(link)
    assert "This link is not good any more" in text(Client().get(urlsplit(link).path))


def test_a_link_dies_when_the_password_is_changed_or_the_account_closed(mailbox):
    person = add_person(Role.OPERATOR)
    link = urlsplit(recovery.link_for(person)).path
    User.objects.update(is_active=False)
    assert "not good any more" in text(Client().get(link))
    User.objects.update(is_active=True)
    assert Client().get(link).status_code == 302
    person.set_password(PASSWORD)
    person.save()
    assert "not good any more" in text(Client().get(link))


def test_nobody_learns_who_has_an_account(mailbox, monkeypatch, django_assert_num_queries):
    """The answer is given before anybody looks whether the address is known."""
    later = []
    monkeypatch.setattr(letters, "soon", later.append)
    add_person(Role.OPERATOR)
    add_person(Role.VIEWER, is_active=False)
    before = User.objects.count()
    answers = []
    for email in ("operator@example.org", "viewer@example.org", "nobody@example.org"):
        answer = ask(email)
        answers.append((answer.status_code, answer.headers["Location"], answer.content))
    assert len(set(answers)) == 1
    assert mailbox.messages == []
    assert len(later) == 3
    for work in later:
        work()
    assert mailbox.recipients == ["<operator@example.org>"]
    assert User.objects.count() == before


def test_somebody_without_a_password_can_get_one(mailbox):
    User.objects.create_user("new@example.org", None, name="New", role=Role.VIEWER)
    ask("new@example.org")
    choose(mailbox.links()[0])
    assert User.objects.get(email="new@example.org").check_password(NEW)


def test_the_host_of_the_link_is_ours_whatever_the_request_says(mailbox, settings):
    settings.ALLOWED_HOSTS = ["*"]
    add_person(Role.OPERATOR)
    Client().post(
        "/accounts/password/reset/", {"email": "operator@example.org"}, headers={"host": "evil.example"}
    )
    assert mailbox.links()[0].startswith("http://localhost:8000/accounts/password/reset/key/")


def test_nobodys_mailbox_is_flooded(mailbox):
    add_person(Role.OPERATOR)
    assert [ask("operator@example.org").status_code for _ in range(6)] == [302] * 5 + [429]
    assert [ask("nobody@example.org").status_code for _ in range(6)] == [302] * 5 + [429]
    assert len(mailbox.messages) == 5


def test_without_a_mail_server_the_page_says_who_helps_and_nothing_happens(client):
    add_person(Role.OPERATOR)
    page = text(client.get("/accounts/password/reset/"))
    assert "This installation sends no e-mail. An admin can make a link" in page
    assert "ocpp-billing create-admin --reset-password" in page
    assert "<form" not in page.partition("<main")[2].partition("bare-help")[0]
    assert ask("operator@example.org").status_code == 302
    assert not AuditEntry.objects.exists()


def test_an_admin_makes_a_link_for_a_person(signed_in):
    person = add_person(Role.VIEWER)
    answer = text(signed_in(Role.ADMIN).post(f"/settings/users/{person.pk}/new-password"))
    assert "Give this link to The viewer yourself" in answer
    link = re.search(r"http://localhost:8000/accounts/password/reset/key/[^\s\"<]+", answer)
    assert link is not None
    assert choose(link[0]).status_code == 302
    person.refresh_from_db()
    assert person.check_password(NEW)
    made = AuditEntry.objects.get(action="user.reset_link_made")
    assert (made.actor, made.target) == ("admin@example.org", "user viewer@example.org")
    assert link[0] not in str(made.after)


def test_with_a_mail_server_the_link_goes_to_the_person_and_not_to_the_admin(signed_in, mailbox):
    person = add_person(Role.VIEWER)
    answer = signed_in(Role.ADMIN).post(f"/settings/users/{person.pk}/new-password", follow=True)
    assert "The link is on its way to viewer@example.org." in text(answer)
    assert "password/reset/key" not in text(answer)
    assert mailbox.recipients == ["<viewer@example.org>"]


def test_a_weak_password_is_refused_beside_its_field(mailbox):
    add_person(Role.OPERATOR)
    ask("operator@example.org")
    answer = choose(mailbox.links()[0], "short")
    assert "at least 12 characters" in text(answer)


def test_too_many_letters_at_once_are_dropped_and_said_in_the_log(monkeypatch):
    from structlog.testing import capture_logs

    monkeypatch.setattr(letters, "_places", threading.BoundedSemaphore(1))
    letters._places.acquire()
    with capture_logs() as said:
        letters.soon(lambda: pytest.fail("must not be done"))
    assert [line["action"] for line in said] == ["letter.dropped"]


def test_a_letter_that_is_not_taken_is_said_in_the_log(mailbox, monkeypatch):
    from structlog.testing import capture_logs

    ended = threading.Event()
    monkeypatch.undo()  # the real `soon`
    monkeypatch.setattr(letters, "_places", threading.BoundedSemaphore(1))
    monkeypatch.setattr(letters, "connection", SimpleNamespace(close=ended.set))

    def fail():
        raise letters.MailError("the server is away")

    with capture_logs() as said:
        letters.soon(fail)
        assert ended.wait(10)
    assert [(line["action"], line["error"]) for line in said] == [("letter.failed", "the server is away")]


def test_who_ends_waits_for_letters_and_hears_of_those_that_were_not_sent(monkeypatch):
    from structlog.testing import capture_logs

    def fail():
        raise letters.MailError("the server is away")

    monkeypatch.setattr(letters, "connection", SimpleNamespace(close=lambda: None))
    sent, stuck = threading.Event(), threading.Event()
    letters.finish(10)  # those of other tests
    with capture_logs() as said:
        letters.soon(fail)
        letters.soon(lambda: (time.sleep(0.1), sent.set()))
        assert letters.finish(10) == ["A letter was not sent. the server is away."]
        assert sent.is_set()
        assert letters.finish(10) == []
        letters.soon(lambda: stuck.wait(10))
        assert letters.finish(0.01) == [
            "A letter was not sent. The mail server did not take it within 0.01 s."
        ]
    stuck.set()
    assert letters.finish(10) == []
    assert [line["action"] for line in said] == ["letter.failed", "letter.lost"]
