"""Addresses of the portal's pages."""

from django.urls import path

from ocpp_billing.portal import acts, dashboard, delivery, live, runs, setup, sync_now, theme

app_name = "portal"
urlpatterns = [
    path("", dashboard.dashboard, name="dashboard"),
    path("sessions/<int:session_id>/<slug:act>", acts.session_act, name="session_act"),
    path("setup", setup.setup, name="setup"),
    path("setup/steve", setup.check, {"system": "steve"}, name="check_steve"),
    path("setup/lago", setup.check, {"system": "lago"}, name="check_lago"),
    path("delivery/go-live", delivery.go_live, name="go_live"),
    path("delivery/pause", delivery.pause, name="pause"),
    path("delivery/resume", delivery.resume, name="resume"),
    path("sync", runs.runs, name="runs"),
    path("sync/<int:run_id>", runs.run, name="run"),
    path("sync/now", sync_now.sync_now, name="sync_now"),
    path("live", live.changes, name="live"),
    path("theme", theme.choose_theme, name="theme"),
]
