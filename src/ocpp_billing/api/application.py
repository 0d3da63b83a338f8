"""The JSON API put together: routers, errors, documentation."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase, HttpResponseNotAllowed
from django.urls import URLPattern, URLResolver, path
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema

import ocpp_billing
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.api import balance, billing_events, directory, mappings, people, sessions, sync
from ocpp_billing.api.auth import allow, token_caller
from ocpp_billing.api.errors import ApiError, ErrorBody, answer_errors, error_response

DESCRIPTION = """
Energies are whole watt-hours, instants are UTC. A list gives `next` while there is more: hand it back as
`cursor`. Every error has one shape: `{"error": {"code", "message", "fields"}}`, and its message says what to
do. Roles: **viewer** reads (id tags as their last four characters), **operator** also maps, reviews and
synchronizes, **admin** also manages people and sees the audit log. With the portal's session, requests that
change something need the CSRF token as `X-CSRFToken`; with a bearer token they do not.
"""
# What any operation may answer besides what it says itself.
COMMON_ERRORS = {
    "401": "Not signed in, or the token is not valid",
    "403": "Your role is too low, or the CSRF token is missing",
    "422": "The request cannot be understood, or makes no sense",
    "429": "Too many tokens that were not valid",
    "500": "Unexpected; it is in the log",
    "503": "The database, or Lago, does not answer",
}


class Api(NinjaAPI):
    """The API; answers of the framework around it have the one error shape, too."""

    def _get_urls(self) -> list[URLResolver | URLPattern]:
        patterns = super()._get_urls()
        for pattern in patterns:
            if isinstance(pattern, URLPattern):
                pattern.callback = _one_error_shape(pattern.callback)
        return [*patterns, path("<path:unknown>", no_such_address)]

    def get_openapi_schema(self, **given: Any) -> OpenAPISchema:
        """The OpenAPI, with the role that each operation needs and the errors that any may answer."""
        schema = super().get_openapi_schema(**given)
        schema["components"]["schemas"].update(_error_schemas())
        roles = {
            (prefix, method.lower()): operation.auth_callbacks[0].needs
            for prefix, operation in _operations(self)
            for method in operation.methods
        }
        for address, methods in schema["paths"].items():
            for method, operation in methods.items():
                operation["x-role"] = str(roles[address, method])
                answers = operation["responses"] = {
                    str(code): answer for code, answer in operation["responses"].items()
                }
                more = {} if "{" not in address else {"404": "There is no such thing"}
                if "requestBody" in operation:
                    more |= {"400": "The body is no JSON", "413": "The body is too big"}
                if method in {"post", "patch", "delete"}:
                    more |= {"409": "It contradicts what is there"}
                for code, description in (COMMON_ERRORS | more).items():
                    answers.setdefault(code, _error_answer(description))
        return schema


def _operations(api: NinjaAPI) -> Any:
    """Every operation with its address as in the OpenAPI."""
    root = api.get_root_path({})
    for bound in api._get_bound_routers():  # noqa: SLF001 - what ninja's own schema goes by
        for address, view in bound.path_operations.items():
            full = "/".join(part.strip("/") for part in (root, bound.prefix, address) if part.strip("/"))
            for operation in view.operations:
                yield "/" + full, operation


def _error_schemas() -> dict[str, Any]:
    schema = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ErrorBody": schema}


def _error_answer(description: str) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/ErrorBody"}
    return {"description": description, "content": {"application/json": {"schema": reference}}}


def _one_error_shape(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = view(request, *args, **kwargs)
        if isinstance(response, HttpResponseNotAllowed):
            allowed = response.headers["Allow"]
            message = f"Here only {allowed} is understood."
            return error_response(405, "method_not_allowed", message, Allow=allowed)
        return response

    return answer


def no_such_address(request: HttpRequest, unknown: str) -> HttpResponse:  # noqa: ARG001 - Django's signature
    """404 for every other address below ``api/``."""
    return error_response(404, "not_found", "There is no such address. /api/docs lists all of them.")


def signed_in_or_token(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The documentation is for people who may call the API at all."""

    def guarded(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        kind, _, text = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            try:
                token_caller(request, text)
            except ApiError as error:
                return error.response()
        elif not isinstance(request.user, User):
            return redirect_to_login(request.get_full_path())
        return view(request, **kwargs)

    return guarded


api = Api(
    title="OCPP Billing Sync",
    version=ocpp_billing.__version__,
    description=DESCRIPTION,
    urls_namespace="api",
    # Deny by default: an operation that says nothing is for admins.
    auth=allow(Role.ADMIN),
    docs_decorator=signed_in_or_token,
)
answer_errors(api)
api.add_router("/sync", sync.router)
api.add_router("/mappings", mappings.router)
api.add_router("", directory.router)
api.add_router("/sessions", sessions.router)
api.add_router("/billing-events", billing_events.router)
api.add_router("/held", sessions.held_router)
api.add_router("/balance", balance.router)
api.add_router("/users", people.users_router)
api.add_router("/tokens", people.tokens_router)
api.add_router("/audit", people.audit_router)
