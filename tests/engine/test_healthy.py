"""``ocpp-billing healthy``: what containers and service managers ask; and both simulators of the demo."""

from __future__ import annotations

import json
import socket
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ocpp_billing import clock
from ocpp_billing.charging.models import Source
from ocpp_billing.cli import main
from ocpp_billing.sync.liveness import heard_of_here
from ocpp_billing.sync.models import WorkerHeartbeat
from tests.engine.processes import run_command, running


class Portal(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def portal():
    server = HTTPServer(("127.0.0.1", 0), Portal)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield str(server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_process_that_answers_is_healthy(portal, capsys):
    assert main(["healthy", "web", "--port", portal]) == 0
    assert capsys.readouterr().out == "The web process lives.\n"


def test_one_that_answers_with_an_error_is_not(portal, monkeypatch, capsys):
    monkeypatch.setattr(Portal, "status", 500)
    assert main(["healthy", "web", "--port", portal]) == 1
    assert "answers 500" in capsys.readouterr().err


def test_one_that_does_not_answer_is_not(capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert main(["healthy", "web", "--port", str(port)]) == 1
    assert "does not answer" in capsys.readouterr().err


def beat(worker, *, ago, **fields):
    source = Source.objects.get_or_create(name="main")[0]
    WorkerHeartbeat.objects.create(worker=worker, source=source, seen_at=clock.now() - ago, **fields)


SECOND = timedelta(seconds=1)


@pytest.mark.django_db
class TestWorker:
    here = f"{socket.gethostname()}:4711:abc"

    def test_a_worker_of_this_machine_that_was_heard_of_lately_lives(self):
        beat(self.here, ago=5 * SECOND)
        assert heard_of_here(clock.now())

    def test_another_machines_worker_says_nothing_about_this_one(self):
        beat(f"another-{self.here}", ago=5 * SECOND)
        assert not heard_of_here(clock.now())

    def test_a_silent_or_stopped_worker_does_not_live(self):
        beat(self.here, ago=31 * SECOND)
        beat(f"{self.here}d", ago=5 * SECOND, stopped_at=clock.now())
        assert not heard_of_here(clock.now())


def test_both_simulators_of_the_demo_are_served_with_the_settings_that_lead_to_them(tmp_path):
    command = ["simulate", "demo", "--steve-port", "0", "--lago-port", "0"]
    with running(*command, settings={}, log=tmp_path / "log") as process:
        process.says("LAGO_API_KEY=")
        given = dict(line.split("=", 1) for line in process.said().splitlines())
        done = run_command("doctor", "--json", settings=given)
        assert process.terminate() == 0
    said = {finding["code"] for finding in json.loads(done.stdout)["findings"] if finding["level"] == "ok"}
    assert {"address", "release", "version", "metric"} <= said
