"""Addresses of the portal's pages."""

from django.urls import path

from ocpp_billing.portal import acts, dashboard, live, runs, sync_now, theme

app_name = "portal"
urlpatterns = [
    path("", dashboard.dashboard, name="dashboard"),
    path("sessions/<int:session_id>/<slug:act>", acts.session_act, name="session_act"),
    path("sync", runs.runs, name="runs"),
    path("sync/<int:run_id>", runs.run, name="run"),
    path("sync/now", sync_now.sync_now, name="sync_now"),
    path("live", live.changes, name="live"),
    path("theme", theme.choose_theme, name="theme"),
]
