"""Who may open which page and do which act: every view of the portal, with every role and with nobody."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import get_resolver

from ocpp_billing.accounts.models import Role

pytestmark = pytest.mark.django_db

VIEWER, OPERATOR, ADMIN = Role.VIEWER, Role.OPERATOR, Role.ADMIN
ORDER = [VIEWER, OPERATOR, ADMIN]
# By path: who may look (GET) and who may act (POST); None = the view has no such thing.
# Written by hand: what a page needs is decided here, not read from the code. Sorted, one line per view.
NEEDS: dict[str, tuple[Role | None, Role | None]] = {
    "/": (VIEWER, None),
    "/account": (VIEWER, VIEWER),
    "/account/sessions/<int:session_id>/end": (None, VIEWER),
    "/account/sessions/end": (None, VIEWER),
    "/attention": (VIEWER, None),
    "/attention/<slug:state>/<path:reason>": (VIEWER, None),
    "/attention/act": (OPERATOR, OPERATOR),
    "/attention/undo": (None, OPERATOR),
    "/billing-events": (VIEWER, None),
    "/delivery/go-live": (ADMIN, ADMIN),
    "/delivery/pause": (OPERATOR, OPERATOR),
    "/delivery/resume": (ADMIN, ADMIN),
    "/live": (VIEWER, None),
    "/mappings": (VIEWER, None),
    "/mappings/<int:mapping_id>": (VIEWER, None),
    "/mappings/<int:mapping_id>/change": (OPERATOR, OPERATOR),
    "/mappings/<int:mapping_id>/delete": (OPERATOR, OPERATOR),
    "/mappings/<int:mapping_id>/end": (OPERATOR, OPERATOR),
    "/mappings/<int:mapping_id>/move": (OPERATOR, OPERATOR),
    "/mappings/<int:mapping_id>/note": (None, OPERATOR),
    "/mappings/<int:mapping_id>/switch": (OPERATOR, OPERATOR),
    "/mappings/<int:mapping_id>/verify": (None, OPERATOR),
    "/mappings/customers": (OPERATOR, None),
    "/mappings/export": (VIEWER, None),
    "/mappings/import": (OPERATOR, OPERATOR),
    "/mappings/new": (OPERATOR, OPERATOR),
    "/mappings/tags": (OPERATOR, None),
    "/search": (VIEWER, None),
    "/sessions/<int:session_id>": (VIEWER, None),
    "/sessions/<int:session_id>/<slug:act>": (OPERATOR, OPERATOR),
    "/sessions/<int:session_id>/move": (OPERATOR, OPERATOR),
    "/settings/audit": (ADMIN, None),
    "/settings/audit.csv": (ADMIN, None),
    "/settings/invitations/<int:invitation_id>/renew": (None, ADMIN),
    "/settings/invitations/<int:invitation_id>/revoke": (None, ADMIN),
    "/settings/tokens": (VIEWER, None),
    "/settings/tokens/<int:token_id>/revoke": (VIEWER, VIEWER),
    "/settings/tokens/new": (VIEWER, VIEWER),
    "/settings/users": (ADMIN, None),
    "/settings/users/<int:user_id>": (ADMIN, ADMIN),
    "/settings/users/<int:user_id>/<slug:act>": (ADMIN, ADMIN),
    "/settings/users/invite": (ADMIN, ADMIN),
    "/setup": (VIEWER, None),
    "/setup/lago": (OPERATOR, None),
    "/setup/steve": (OPERATOR, None),
    "/sync": (VIEWER, None),
    "/sync/<int:run_id>": (VIEWER, None),
    "/sync/now": (None, OPERATOR),
}
# For people without a session: sign-in itself, and the link of an invitation.
OPEN = {"/invitation/<str:link>", "/theme"}


def views_of_the_portal():
    (portal,) = [one for one in get_resolver().url_patterns if getattr(one, "namespace", None) == "portal"]
    return {f"/{view.pattern}" for view in portal.url_patterns}


def ask(client, method, path):
    path = re.sub(r"<int:\w+>", "999999999", path).replace("<slug:act>", "accept")
    path = path.replace("<slug:state>", "held").replace("<path:reason>", "unmapped_tag")
    if path == "/live" and method == "GET":
        return client.get(f"{path}?seen=x", headers={"Accept": "text/event-stream"})
    return client.generic(method, path)


def test_every_view_is_in_the_matrix_and_the_other_way_round():
    assert views_of_the_portal() == set(NEEDS) | OPEN
    assert list(NEEDS) == sorted(NEEDS)


def test_nobody_gets_past_sign_in_without_being_somebody():
    for path in NEEDS:
        for method in ("GET", "POST"):
            answer = ask(Client(), method, path)
            streams = path == "/live" and method == "GET"
            assert answer.status_code == (401 if streams else 302), path
            if not streams:
                assert answer.headers["Location"].startswith("/accounts/login/"), path


@pytest.mark.parametrize("role", ORDER)
def test_a_role_sees_and_does_what_it_may_and_no_more(role, signed_in):
    """Nothing that is asked for is there, and forms are empty: who may, is told so, or shown the form again."""
    client = signed_in(role)
    for path, needed in NEEDS.items():
        for method, needs in zip(("GET", "POST"), needed, strict=True):
            status = ask(client, method, path).status_code
            if needs is None:
                assert status in {403, 405}, (path, method)
            elif ORDER.index(role) < ORDER.index(needs):
                assert status == 403, (path, method)
            else:
                assert status in {200, 302, 400, 404}, (path, method, status)


def test_no_act_is_done_without_the_csrf_token(signed_in):
    enforcing = Client(enforce_csrf_checks=True)
    enforcing.cookies = signed_in(ADMIN).cookies
    for path, (_, act) in NEEDS.items():
        if act is not None:
            assert ask(enforcing, "POST", path).status_code == 403, path
