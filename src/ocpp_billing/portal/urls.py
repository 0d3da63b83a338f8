"""Addresses of the portal's pages."""

from django.urls import path

from ocpp_billing.portal import (
    acts,
    dashboard,
    delivery,
    live,
    mapping,
    mapping_form,
    mapping_import,
    mapping_move,
    mappings,
    runs,
    setup,
    sync_now,
    theme,
)

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
    path("mappings", mappings.mappings, name="mappings"),
    path("mappings/customers", mappings.customer_options, name="mapping_customer_options"),
    path("mappings/export", mappings.export, name="mapping_export"),
    path("mappings/import", mapping_import.mapping_import, name="mapping_import"),
    path("mappings/new", mapping_form.mapping_new, name="mapping_new"),
    path("mappings/tags", mappings.tag_options, name="mapping_tag_options"),
    path("mappings/<int:mapping_id>", mapping.mapping, name="mapping"),
    path("mappings/<int:mapping_id>/change", mapping_form.mapping_change, name="mapping_change"),
    path("mappings/<int:mapping_id>/delete", mapping.mapping_delete, name="mapping_delete"),
    path("mappings/<int:mapping_id>/end", mapping.mapping_end, name="mapping_end"),
    path("mappings/<int:mapping_id>/move", mapping_move.mapping_move, name="mapping_move"),
    path("mappings/<int:mapping_id>/note", mapping.mapping_note, name="mapping_note"),
    path("mappings/<int:mapping_id>/switch", mapping.mapping_switch, name="mapping_switch"),
    path("mappings/<int:mapping_id>/verify", mapping.mapping_verify, name="mapping_verify"),
    path("sync", runs.runs, name="runs"),
    path("sync/<int:run_id>", runs.run, name="run"),
    path("sync/now", sync_now.sync_now, name="sync_now"),
    path("live", live.changes, name="live"),
    path("theme", theme.choose_theme, name="theme"),
]
