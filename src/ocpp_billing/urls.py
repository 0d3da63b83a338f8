"""Addresses of the web application."""

from django.urls import URLPattern, URLResolver, include, path

from ocpp_billing.api.application import api
from ocpp_billing.portal.broken import broken, not_found
from ocpp_billing.portal.health import healthz
from ocpp_billing.portal.monitoring import metrics, readyz

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
    path("accounts/", include("ocpp_billing.accounts.urls")),
    path("api/", api.urls),
    path("", include("ocpp_billing.portal.urls")),
]

handler404 = not_found
handler500 = broken
