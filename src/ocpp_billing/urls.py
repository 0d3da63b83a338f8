"""Addresses of the web application."""

from django.urls import URLPattern, URLResolver, include, path

from ocpp_billing.portal.health import healthz

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", healthz, name="healthz"),
    path("accounts/", include("ocpp_billing.accounts.urls")),
    path("", include("ocpp_billing.portal.urls")),
]
