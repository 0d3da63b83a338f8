"""An operator's first day, from the first admin to the first bill: real processes, nothing set up for them."""

from __future__ import annotations

import re
import socket

import pytest
from playwright.sync_api import expect

from ocpp_billing.embedded.demo import DemoWorld
from tests.engine.processes import run_command, running, test_database_url
from tests.portal.browser.conftest import check_every_look

ADMIN = {
    "ADMIN_EMAIL": "ada@example.org",
    "ADMIN_PASSWORD": "a long day at the charger",
    "ADMIN_NAME": "Ada Ampere",
}


@pytest.fixture
def product(tmp_path):
    """Address of a portal with a worker beside it, between a StEvE with recorded sessions and a Lago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    world = DemoWorld.of_release("3.14.1")
    world.start()
    address = f"http://localhost:{port}"
    settings = world.environment() | {"DATABASE_URL": test_database_url(), "AUTH_URL": address}
    try:
        assert run_command("create-admin", settings=settings | ADMIN).returncode == 0
        with (
            running("web", "--port", str(port), settings=settings, log=tmp_path / "web") as web,
            running("worker", settings=settings, log=tmp_path / "worker") as worker,
        ):
            web.says("Uvicorn running on")
            worker.says("worker leads")
            yield address, world
            for process in (web, worker):
                assert "Traceback" not in process.said(), process.said().partition("Traceback")[2][:4000]
    finally:
        world.stop()


def sign_in(page, address):
    page.goto(address)
    page.get_by_label("E-mail").fill(ADMIN["ADMIN_EMAIL"])
    page.get_by_label("Password").fill(ADMIN["ADMIN_PASSWORD"])
    page.get_by_role("button", name="Sign in").click()


def state_row(page, state):
    return page.get_by_role("region", name="Balance").get_by_role("row").filter(has_text=state)


@pytest.mark.parametrize("scripted", [True, False], ids=["with JavaScript", "without"])
def test_from_the_first_admin_to_the_first_bill(browser, product, scripted):
    address, world = product
    context = browser.new_context(java_script_enabled=scripted, base_url=address)
    page = context.new_page()
    page.set_default_timeout(60_000)
    sign_in(page, address)

    # -- the checklist leads on
    expect(page.get_by_text("Set-up: 0 of 4 steps done")).to_be_visible()
    page.get_by_role("link", name="Go on").click()
    page.get_by_role("button", name="Read StEvE now").click()
    heading = page.get_by_role("heading", level=1)
    for _ in range(60):
        if scripted or "Completed" in heading.inner_text():
            break
        page.wait_for_timeout(500)
        page.reload()
    expect(heading).to_contain_text("Completed", timeout=60_000)

    # -- who pays
    page.goto("/mappings")
    page.get_by_role("row").filter(has_text="TAG-ALICE").get_by_role("link", name="Map").click()
    page.get_by_role("combobox", name="Customer").or_(page.get_by_role("textbox", name="Customer")).fill(
        "alice"
    )
    page.get_by_label("The first session that waits for it").check()
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text(re.compile(r"49\.245")).first).to_be_visible()
    page.get_by_role("button", name="Save the mapping").click()

    # -- what would be billed, then live
    page.goto("/setup")
    page.get_by_role("link", name="Preview and go live").click()
    page.get_by_label("Bill sessions that stopped at or after").fill(f"{world.begins_at:%Y-%m-%dT%H:%M}")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Go live and send").click()
    expect(page.get_by_text("Billing is live")).to_be_visible()
    page.get_by_role("button", name="Sync now").click()
    for _ in range(60):
        page.goto("/")
        if "49.245" in state_row(page, "Confirmed").inner_text():
            break
        page.wait_for_timeout(500)
    expect(state_row(page, "Confirmed")).to_contain_text("49.245")
    assert world.lago.summary()["energy_wh"] == 49_245

    # -- what needs both systems and cannot be undone is foretold, in every look
    if scripted:
        page.goto("/attention/stuck/-")
        page.get_by_role("row").filter(has_text="tag-alice").get_by_role(
            "link", name="Close in StEvE"
        ).click()
        expect(page.get_by_text("It then delivered 1.500 kWh.")).to_be_visible()
        check_every_look(page)
        page.goto("/mappings")
        page.get_by_role("link", name="TAG-ALICE").first.click()
        page.goto(f"{page.url}/move")
        page.get_by_role("combobox", name="Customer").fill("bob")
        page.get_by_label("All of them that are not billed there yet").check()
        page.get_by_role("button", name="Preview").last.click()
        expect(page.get_by_text("5 sessions, 49.245 kWh").first).to_be_visible()
        check_every_look(page)

    # -- what is held is understood and settled
    page.goto("/attention")
    wrong_clock = page.get_by_role("region", name=re.compile("Wrong clock"))
    expect(wrong_clock).to_contain_text("1970")
    wrong_clock.get_by_role("link", name="Look at it").click()
    page.locator("summary", has=page.locator("svg")).first.click()
    page.get_by_role("link", name=re.compile("Exclude")).first.click()
    page.get_by_label(re.compile("Why|Note")).fill("The station's clock was reset; nobody charged.")
    page.get_by_role("button", name=re.compile("Exclude")).click()
    for _ in range(60):
        page.goto("/")
        if "1.000" in state_row(page, "Excluded").inner_text():
            break
        page.wait_for_timeout(500)
    expect(state_row(page, "Excluded")).to_contain_text("1.000")

    # -- somebody may look, and only look
    page.goto("/settings/users")
    page.get_by_role("link", name="Invite somebody").click()
    page.get_by_label("Password").fill(ADMIN["ADMIN_PASSWORD"])
    page.get_by_role("button", name="Confirm").click()
    page.get_by_label("E-mail").fill("finn@example.org")
    page.get_by_label("Name").fill("Finn Finance")
    page.get_by_role("button", name="Make the invitation").click()
    link = page.get_by_text(f"{address}/invitation/").first.inner_text().strip()
    theirs = browser.new_context(java_script_enabled=scripted, base_url=address)
    viewer = theirs.new_page()
    viewer.set_default_timeout(60_000)
    viewer.goto(link)
    viewer.get_by_label("Password", exact=True).fill("only looking at the figures")
    viewer.get_by_label("Password, again").fill("only looking at the figures")
    viewer.get_by_role("button", name="Accept and sign in").click()
    viewer.goto("/")
    expect(state_row(viewer, "Confirmed")).to_contain_text("49.245")
    expect(viewer.get_by_role("button", name="Sync now")).to_have_count(0)
    viewer.goto("/mappings")
    expect(viewer.get_by_text("TAG-ALICE")).to_have_count(0)  # a tag is a credential
    for forbidden in ("/mappings/new", "/settings/users", "/delivery/pause"):
        assert viewer.goto(forbidden).status == 403
    theirs.close()
    context.close()
