"""People, their tokens, and the record of what they did."""

from typing import Any

from django.http import Http404
from ninja import Query, Router, Status

from ocpp_billing import clock
from ocpp_billing.accounts import people, tokens
from ocpp_billing.accounts.audit import find_entries
from ocpp_billing.accounts.confirmation import is_confirmed
from ocpp_billing.accounts.models import ApiToken, Role, User
from ocpp_billing.api.auth import ApiRequest, allow
from ocpp_billing.api.errors import ApiError
from ocpp_billing.api.pages import cut_page, decode_cursor
from ocpp_billing.api.queries import AuditQuery, TokenQuery
from ocpp_billing.api.schemas import (
    AuditPage,
    Id,
    TokenIn,
    TokenList,
    TokenMade,
    TokenOut,
    UserChange,
    UserIn,
    UserList,
    UserOut,
)

users_router = Router(tags=["Users"])
tokens_router = Router(tags=["Tokens"])
audit_router = Router(tags=["Audit"])


LETS_NOBODY_IN = (
    "A token cannot add people, raise a role or open a closed account: whoever stole it would have a way in "
    "that outlives it. Sign in and do it in the portal, under Users."
)
MAKES_NO_TOKENS = "A token cannot make tokens. Sign in to make one."


def _require_a_person(request: ApiRequest, by_token: str) -> None:
    """Go on only for somebody signed in who has just proved that it is them.

    Raises:
        ApiError: 403 for a token, and for a session without that proof.
    """
    if request.auth.token is not None:
        raise ApiError(403, "forbidden", by_token)
    if not is_confirmed(request):
        raise ApiError(
            403,
            "confirmation_required",
            "Confirm first that it is you: give your password once more at /accounts/reauthenticate/ of the "
            "portal, and ask again within five minutes.",
        )


# -- users -------------------------------------------------------------------------------------------


@users_router.get("", response=UserList, auth=allow(Role.ADMIN))
def list_users(request: ApiRequest) -> Any:  # noqa: ARG001 - ninja's signature
    """Everybody who can sign in, or could."""
    return {"items": [_user(user) for user in User.objects.order_by("email")]}


@users_router.post("", response={201: UserOut}, auth=allow(Role.ADMIN))
def add_user(request: ApiRequest, data: UserIn) -> Any:
    """Add a person. Without a password they cannot sign in until they were given one.

    Only with a session, whose person has given their password just now.
    """
    _require_a_person(request, LETS_NOBODY_IN)
    user = people.add_person(
        email=data.email,
        name=data.name,
        role=data.role,
        password=data.password,
        by=request.auth.user,
        actor=request.auth.name,
    )
    return Status(201, _user(user))


@users_router.get("/{user_id}", response=UserOut, auth=allow(Role.ADMIN))
def get_user(request: ApiRequest, user_id: Id) -> Any:  # noqa: ARG001 - ninja's signature
    """One person."""
    return _user(_find_user(user_id))


@users_router.patch("/{user_id}", response=UserOut, auth=allow(Role.ADMIN))
def change_user(request: ApiRequest, user_id: Id, data: UserChange) -> Any:
    """Change name or role, or close and open the account. People are never deleted: the audit names them.

    A higher role, and opening an account, only with a session, whose person has given their password just
    now; a token may lower a role and close an account.
    """
    try:
        user = people.change_person(
            _find_user(user_id).pk,
            name=data.name,
            role=data.role,
            active=data.active,
            by=request.auth.user,
            actor=request.auth.name,
            may_do_more=request.auth.token is None and is_confirmed(request),
        )
    except people.MayDoMoreError:
        _require_a_person(request, LETS_NOBODY_IN)
        raise
    return _user(user)


def _find_user(user_id: int) -> User:
    user = User.objects.filter(pk=user_id).first()
    if user is None:
        raise Http404(f"There is no user {user_id}.")
    return user


def _user(user: User) -> dict[str, Any]:
    return {
        "id": user.pk,
        "email": user.email,
        "name": user.name,
        "role": user.role,
        "active": user.is_active,
        "created_at": user.date_joined,
        "last_login": user.last_login,
    }


# -- tokens ------------------------------------------------------------------------------------------


@tokens_router.get("", response=TokenList, auth=allow(Role.VIEWER))
def list_tokens(
    request: ApiRequest,
    query: Query[TokenQuery],
) -> Any:
    """Your tokens, newest first, revoked and expired ones included. Never the tokens themselves."""
    if query.everybody and request.auth.role != Role.ADMIN:
        raise ApiError(403, "forbidden", "Only admins see the tokens of everybody. Leave 'everybody' out.")
    rows = ApiToken.objects.select_related("user")
    if not query.everybody:
        rows = rows.filter(user=request.auth.user)
    return {"items": [_token(token) for token in rows]}


@tokens_router.post("", response={201: TokenMade}, auth=allow(Role.VIEWER))
def make_token(request: ApiRequest, data: TokenIn) -> Any:
    """Make a token for yourself. It is shown in this answer and never again.

    Only with a session, whose person has given their password just now: a token that could make tokens would
    outlive its expiry and its revocation, and so would a session that was stolen.
    """
    _require_a_person(request, MAKES_NO_TOKENS)
    forever_or_until = "expires_at" in data.model_fields_set
    token, text = tokens.issue_token(
        request.auth.user,
        name=data.name,
        role=data.role,
        expires_at=data.expires_at if forever_or_until else clock.now() + tokens.DEFAULT_LIFETIME,
    )
    return Status(201, {**_token(token), "token": text})


@tokens_router.delete("/{token_id}", response=TokenOut, auth=allow(Role.VIEWER))
def revoke_token(request: ApiRequest, token_id: Id) -> Any:
    """Revoke a token of yours (by a token: only itself); admins revoke any. It stays in the list."""
    rows = ApiToken.objects.select_related("user")
    if request.auth.role != Role.ADMIN:
        rows = rows.filter(user=request.auth.user)
        if request.auth.token is not None:
            # One that leaked may end itself, and not the others of its owner.
            rows = rows.filter(pk=request.auth.token.pk)
    token = rows.filter(pk=token_id).first()
    if token is None:
        raise Http404(f"There is no token {token_id} of yours.")
    tokens.revoke_token(token, by=request.auth.user, actor=request.auth.name)
    return _token(token)


def _token(token: ApiToken) -> dict[str, Any]:
    return {
        "id": token.pk,
        "user_id": token.user_id,
        "user_email": token.user.email,
        "name": token.name,
        "role": token.effective_role,
        "hint": token.hint,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
        "revoked_at": token.revoked_at,
    }


# -- audit -------------------------------------------------------------------------------------------


@audit_router.get("", response=AuditPage, auth=allow(Role.ADMIN))
def list_audit(
    request: ApiRequest,  # noqa: ARG001 - ninja's signature
    query: Query[AuditQuery],
) -> Any:
    """Who did what, to what, from where; newest first."""
    rows = find_entries(
        since=query.since,
        until=query.until,
        user_id=query.user,
        action=query.action,
        target=query.target,
    )
    after = decode_cursor("audit", query.cursor)
    found = list((rows if after is None else rows.filter(pk__lt=after))[: query.limit + 1])
    page, following = cut_page(found, query.limit, "audit", lambda entry: entry.pk)
    items = [
        {
            "id": entry.pk,
            "at": entry.at,
            "actor": entry.actor,
            "user_id": entry.user_id,
            "action": entry.action,
            "target": entry.target,
            "before": entry.before,
            "after": entry.after,
            "note": entry.note,
            "address": entry.address,
        }
        for entry in page
    ]
    return {"items": items, "next": following}
