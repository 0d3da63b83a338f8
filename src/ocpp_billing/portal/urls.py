"""Addresses of the portal's pages."""

from django.urls import path

from ocpp_billing.portal import dashboard, live, sync_now, theme

app_name = "portal"
urlpatterns = [
    path("", dashboard.dashboard, name="dashboard"),
    path("sync/now", sync_now.sync_now, name="sync_now"),
    path("live", live.changes, name="live"),
    path("theme", theme.choose_theme, name="theme"),
]
