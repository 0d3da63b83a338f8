"""People, as they live it: invited, protected by a second step, locked out, signed out."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.test import Client
from playwright.sync_api import expect

from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import ApiToken, AuditEntry, Invitation, Role, User
from tests.caches import clear_caches
from tests.engine.processes import eventually
from tests.portal.browser.conftest import SIZES, check_every_look
from tests.portal.conftest import PASSWORD, add_person

NEW = "a completely new password"


@pytest.fixture(autouse=True)
def no_attempts_counted():
    """Counters of attempts live in a table that no test empties."""
    clear_caches()


@pytest.fixture
def letters(mail):
    """Those of this test."""
    mail.messages.clear()
    mail.recipients.clear()
    return mail


def path_of(link):
    return urlsplit(link).path


def sign_in(page, email, password=PASSWORD):
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_somebody_is_invited_comes_in_and_changes_nothing(visit, site, letters):
    page = visit("/settings/users", role=Role.ADMIN)
    page.get_by_role("link", name="Invite somebody").click()
    page.get_by_label("E-mail").fill("vera@example.org")
    page.get_by_label("Name").fill("Vera")
    check_every_look(page)
    page.get_by_role("button", name="Send the invitation").click()
    expect(page.get_by_text("The invitation is on its way to vera@example.org.")).to_be_visible()
    check_every_look(page)
    (link,) = letters.links()
    assert link.startswith(f"{site}/invitation/")

    hers = visit(path_of(link))
    expect(hers.get_by_text("You will sign in as vera@example.org.")).to_be_visible()
    check_every_look(hers)
    hers.get_by_label("Password", exact=True).fill(PASSWORD)
    hers.get_by_label("Password, again").fill(PASSWORD)
    hers.get_by_role("button", name="Accept and sign in").click()
    hers.wait_for_url(f"{site}/")
    assert Invitation.objects.get().accepted_at is not None

    expect(hers.get_by_role("button", name="Sync now")).to_have_count(0)
    hers.set_viewport_size(SIZES["desktop"])
    expect(hers.get_by_role("link", name="Tokens")).to_be_visible()
    expect(hers.get_by_role("link", name="Users")).to_have_count(0)
    token = hers.locator("input[name=csrfmiddlewaretoken]").first.input_value()
    for address in ("/sync/now", "/settings/users/invite", f"/settings/users/{User.objects.first().pk}"):
        answer = hers.request.post(address, form={"csrfmiddlewaretoken": token})
        assert answer.status == 403
    hers.goto("/settings/users")
    expect(hers.get_by_role("heading", level=1)).to_have_text("You may not do this")
    hers.goto(path_of(link))
    expect(hers.get_by_role("heading", level=1)).to_have_text("This invitation is not good any more")
    check_every_look(hers)
    visit.faults.clear()  # the browser's own words about 403 and 410

    page.reload()
    page.get_by_role("link", name="Vera").click()
    check_every_look(page)
    page.get_by_role("link", name="Deactivate").click()
    check_every_look(page)
    page.get_by_role("button", name="Deactivate Vera").click()
    expect(page.get_by_text("Vera is deactivated and signed out.")).to_be_visible()
    hers.goto("/")
    hers.wait_for_url(f"{site}/accounts/login/**")


def test_a_phone_protects_an_account(visit, site, letters):
    page = visit("/account", role=Role.OPERATOR, confirmed=False)
    check_every_look(page)
    page.get_by_role("link", name="Switch on two-factor sign-in").click()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("img", name="QR code with the key below")).to_be_visible()
    check_every_look(page)
    secret = page.locator(".secret code").inner_text()

    def code():
        return format_hotp_value(hotp_value(secret, int(time.time()) // 30))

    page.get_by_label("Code", exact=True).fill("000000")
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_text("The code is not correct")).to_be_visible()
    assert page.locator(".secret code").inner_text() == secret
    page.get_by_label("Code", exact=True).fill(code())
    page.get_by_role("button", name="Switch on").click()
    codes = page.get_by_role("list", name="Recovery codes").get_by_role("listitem")
    expect(codes).to_have_count(10)
    check_every_look(page)
    spare = codes.first.inner_text()
    assert "Two-factor sign-in is on" in eventually(lambda: letters.letters)[0]["Subject"]

    page.get_by_role("button", name="Account of").click()
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, "operator@example.org")
    expect(page.get_by_role("heading", level=1)).to_have_text("One more step")
    check_every_look(page)
    page.get_by_label("Code").fill(spare)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{site}/")
    page.goto("/account")
    expect(page.get_by_text("9 are left")).to_be_visible()
    check_every_look(page)

    page.get_by_role("link", name="Switch off two-factor sign-in").click()
    page.get_by_role("link", name="Use a code of your app instead").click()
    check_every_look(page)
    page.get_by_label("Code").fill(code())
    page.get_by_role("button", name="Confirm").click()
    check_every_look(page)
    page.get_by_role("button", name="Switch two-factor sign-in off").click()
    expect(page.get_by_text("Two-factor sign-in is off.")).to_be_visible()


def test_a_forgotten_password_is_replaced_by_e_mail(visit, site, letters):
    add_person(Role.VIEWER)
    page = visit("/accounts/login/")
    page.get_by_role("link", name="Password forgotten?").click()
    check_every_look(page)
    page.get_by_label("E-mail").fill("Viewer@example.org")
    page.get_by_role("button", name="Send the link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Look into your mailbox")
    check_every_look(page)
    (link,) = eventually(letters.links)

    page.goto(path_of(link))
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose a new password")
    check_every_look(page)
    page.get_by_label("New password", exact=True).fill(NEW)
    page.get_by_label("New password, again").fill(NEW)
    page.get_by_role("button", name="Save the new password").click()
    expect(page.get_by_text("The password is changed.")).to_be_visible()
    sign_in(page, "viewer@example.org", NEW)
    page.wait_for_url(f"{site}/")

    page.goto(path_of(link))
    expect(page.get_by_role("heading", level=1)).to_have_text("This link is not good any more")
    check_every_look(page)


def test_one_browser_signs_the_other_out(visit, site):
    here, there = visit("/account", role=Role.VIEWER), visit("/", role=Role.VIEWER)
    here.reload()
    here.get_by_role("button", name="Sign out all others").focus()
    here.get_by_role("listitem").filter(has_text="last seen").get_by_role("button", name="Sign out").click()
    expect(here.get_by_text("That browser is signed out.")).to_be_visible()
    there.goto("/")
    there.wait_for_url(f"{site}/accounts/login/?next=/")
    visit.faults.clear()  # the browser's own word about the 401 of its event stream
    here.reload()
    expect(here.get_by_role("heading", level=1)).to_have_text("Your account")


def test_two_web_processes_count_attempts_together(visit):
    """This process refuses four times and that one once; then both refuse the right password."""
    add_person(Role.VIEWER)
    client = Client()
    given = {"login": "viewer@example.org", "password": "not the password"}
    for _ in range(4):
        assert client.post("/accounts/login/", given).status_code == 200
    page = visit("/accounts/login/")
    sign_in(page, "viewer@example.org", "not the password")
    expect(page.get_by_role("alert")).to_contain_text("is not correct")
    sign_in(page, "viewer@example.org")
    expect(page.get_by_role("alert")).to_contain_text("Too many failed login attempts")
    answer = client.post("/accounts/login/", {**given, "password": PASSWORD})
    assert "Too many failed login attempts" in answer.content.decode()
    assert not AuditEntry.objects.exists()


def test_a_token_is_made_and_revoked_without_javascript(visit):
    page = visit("/settings/tokens", role=Role.OPERATOR, javascript=False, confirmed=False)
    page.get_by_role("main").get_by_role("link", name="Make a token").first.click()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()
    page.get_by_label("Name").fill("nightly export")
    page.get_by_role("button", name="Make the token").click()
    text = page.locator(".secret code").inner_text()
    answer = page.request.get("/api/balance", headers={"Authorization": f"Bearer {text}", "Cookie": ""})
    assert answer.status == 200
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_text(text)).to_have_count(0)
    page.get_by_role("link", name="Revoke nightly export").click()
    page.get_by_role("button", name="Revoke the token").click()
    expect(page.get_by_text("The token “nightly export” is revoked.")).to_be_visible()
    assert ApiToken.objects.get().revoked_at is not None


def test_tokens_and_the_audit_log_at_every_size(visit):
    page = visit("/settings/tokens/new", role=Role.ADMIN)
    check_every_look(page)
    page.get_by_label("Name").fill("monitoring")
    page.get_by_role("button", name="Make the token").click()
    check_every_look(page)
    page.get_by_role("link", name="Done").click()
    page.get_by_role("link", name="Everybody's").click()
    check_every_look(page)
    record(
        "mapping.switch_off",
        actor="command line (root)",
        target="tag:TAG-7",
        before={
            "active": True,
            "customer_id": "a-long-customer-id-without-any-place-to-break-it-at-all-1234567890",
        },
        after={"active": False, "customer_id": None},
        note="as agreed with the customer",
    )
    page.goto("/settings/audit?who=command&from=2026-01-01")
    expect(page.get_by_role("row").filter(has_text="Switched a mapping off")).to_be_visible()
    check_every_look(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    assert "tag:TAG-7" in download.value.path().read_text(encoding="utf-8")
    page.goto("/settings/audit?who=nobody")
    check_every_look(page)
