"""Alerts: opened when something begins, resolved when it is over, and delivered to whoever should know."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from structlog.testing import capture_logs

from ocpp_billing.alerts import book, webhook
from ocpp_billing.alerts.channels import ChannelError, LogChannel, Notice, channels_of, incomplete
from ocpp_billing.alerts.conditions import OF_THE_LEADER, TITLES, Condition, conditions, judge_worker
from ocpp_billing.alerts.mail import MailChannel
from ocpp_billing.alerts.watchman import WorkerGuard
from ocpp_billing.alerts.webhook import WebhookChannel, checked_address, is_forbidden
from ocpp_billing.billing import control
from ocpp_billing.billing.models import BalanceProof
from ocpp_billing.charging.models import ChargingSession, Source
from ocpp_billing.mail import MailError, MailServer
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.liveness import Liveness
from ocpp_billing.sync.models import Alert, AlertMessage, WorkerHeartbeat
from tests.engine.processes import eventually
from tests.smtp import mail_server

NOW = datetime(2026, 3, 17, 12, tzinfo=UTC)
SECRET = "a secret of the tests, which is 32 characters or longer"
NOTICE = Notice(
    message_id=7,
    source="main",
    condition="lago_failing",
    says="Lago answered 503",
    do="Check Lago.",
    opened_at=NOW,
    resolved_at=None,
    url="https://billing.example.org",
)
PAUSED = Condition("delivery_paused", "It paused.", "Resume it.")


class TestConditions:
    """What the ledger says becomes what a person should know."""

    @pytest.fixture
    def live(self, world):
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        return world

    @staticmethod
    def codes(world):
        return {condition.code for condition in conditions(world.config(), world.clock.now())}

    def test_a_quiet_world_has_none(self, live):
        live.session("TAG-ALICE")
        live.sync()
        assert self.codes(live) == set()

    def test_a_passing_failure_is_none_and_an_outage_is(self, live):
        live.sync()
        live.lago.add_fault(Fault("status", status=503, times=-1))
        live.session("TAG-ALICE")
        live.sync()
        assert self.codes(live) == set()
        live.clock.advance(minutes=15)
        live.sync()
        assert self.codes(live) == {"lago_failing"}
        live.lago.clear_faults()
        live.sync()
        assert self.codes(live) == set()

    def test_steve_that_does_not_answer_is_named_with_its_error(self, live):
        live.steve.add_fault(Fault("status", status=502, times=-1))
        live.sync()
        live.clock.advance(minutes=16)
        (condition,) = conditions(live.config(), live.clock.now())
        assert condition.code == "steve_failing"
        assert "502" in condition.says
        assert "ocpp-billing doctor" in condition.do

    def test_a_wrong_password_is_told_at_once(self, live):
        live.sync(steve_api_key="wrong")
        assert self.codes(live) == {"steve_unauthorised"}

    def test_a_revoked_key_is_told_at_once_and_delivery_has_paused(self, live):
        live.session("TAG-ALICE")
        live.lago.revoke_api_key()
        live.sync()
        assert "delivery_paused" in self.codes(live)
        assert "lago_failing" not in self.codes(live)  # one cause, one alert
        (told,) = (each for each in conditions(live.config(), live.clock.now()) if "paused" in each.code)
        assert "goes on by itself with the next run" in told.do

    def test_a_pause_that_a_person_has_to_end_says_so(self, live):
        control.pause(live.config(), by=control.BY_ITSELF, reason="It is another Lago.")
        (told,) = conditions(live.config(), live.clock.now())
        assert told.do.startswith("Settle the cause, then let an admin resume: ocpp-billing resume.")

    def test_a_persons_pause_is_none(self, live):
        live.pause()
        live.sync()
        assert self.codes(live) == set()

    def test_what_is_held_for_long_waits_for_a_person(self, live):
        live.session("TAG-NOBODY", energy_wh=4_500)
        live.sync()
        live.clock.advance(days=2, hours=23)
        assert self.codes(live) == set()
        live.clock.advance(hours=2)
        (condition,) = conditions(live.config(), live.clock.now())
        assert condition.code == "sessions_waiting"
        assert condition.says.startswith(
            "1 session with 4.500 kWh has been held or stuck for more than 3 days"
        )

    def test_a_rejected_event_is_told(self, live):
        live.session("TAG-ALICE")
        live.sync()
        ChargingSession.objects.update(state="rejected")
        assert self.codes(live) == {"events_rejected"}

    def test_a_plan_that_does_not_charge_the_metric_is_told(self, live):
        live.session("TAG-ALICE")
        live.sync()
        ChargingSession.objects.update(state="held", reason="metric_not_charged")
        assert self.codes(live) == {"contract_broken"}

    def test_an_unexplained_watt_hour_is_told_with_its_number(self, live):
        live.sync()
        proof = BalanceProof.objects.latest("id")
        proof.balance["unexplained"] = {"sessions": 0, "energy_wh": -7}
        proof.save()
        (condition,) = conditions(live.config(), live.clock.now())
        assert condition.code == "balance_unexplained"
        assert "-0.007 kWh" in condition.says

    def test_an_error_of_the_program_itself_is_told(self, live):
        run = live.sync()
        run.errors = [
            {"step": "run", "error": "An error of the program itself", "kind": "sync.InternalError"}
        ]
        run.status = "failed"
        run.save()
        live.clock.advance(minutes=20)
        assert self.codes(live) == {"sync_failing"}

    def test_sessions_that_are_only_left_for_later_are_no_failure(self, live):
        run = live.sync()
        run.errors = [{"step": "run", "error": "3 usage events wait for another attempt"}]
        run.status = "partial"
        run.save()
        live.clock.advance(days=1)
        assert self.codes(live) == set()

    def test_every_one_has_a_title(self):
        assert set(OF_THE_LEADER) == set(TITLES)


class TestTheBook:
    @pytest.fixture(autouse=True)
    def source(self, engine_database):
        Source.objects.create(name="main")

    @staticmethod
    def write(*present, competence=OF_THE_LEADER, channels=("log",), at=NOW):
        return book.write("main", present, competence, channels, at)

    def test_what_goes_on_is_opened_once_and_resolved_once(self):
        assert self.write(PAUSED).opened == ("delivery_paused",)
        assert self.write(PAUSED, at=NOW + timedelta(hours=1)).opened == ()
        assert self.write(at=NOW + timedelta(hours=2)).resolved == ("delivery_paused",)
        assert self.write(at=NOW + timedelta(hours=3)).resolved == ()
        alert = Alert.objects.get()
        assert (alert.opened_at, alert.resolved_at) == (NOW, NOW + timedelta(hours=2))
        assert list(AlertMessage.objects.order_by("id").values_list("resolved", flat=True)) == [False, True]

    def test_what_comes_back_is_opened_anew(self):
        self.write(PAUSED)
        self.write()
        assert self.write(PAUSED).opened == ("delivery_paused",)
        assert Alert.objects.count() == 2

    def test_a_pile_is_told_again_when_it_has_doubled_and_by_ten_at_least(self):
        told = []
        sizes = [1, 2, 9, 10, 11, 21, 22, 15, 23, 44, 87, 88, 1]
        for hour, size in enumerate(sizes):
            changes = self.write(waiting(size), at=NOW + timedelta(hours=hour))
            if changes.opened or changes.grown:
                told.append(size)
        assert told == [1, 11, 22, 44, 88]
        heard = Heard()
        assert book.send_due("main", {"log": heard}, "", NOW + timedelta(days=1)) == 5
        assert [notice.title for notice in heard.notices] == [
            "Sessions wait for a person",
            *["More: Sessions wait for a person"] * 4,
        ]
        assert len({notice.message_id for notice in heard.notices}) == 5
        assert self.write().resolved == ("sessions_waiting",)

    def test_what_is_about_no_number_is_never_told_again(self):
        self.write(PAUSED)
        assert self.write(PAUSED, at=NOW + timedelta(days=30)) == book.Changes((), (), ())
        assert AlertMessage.objects.count() == 1

    def test_its_words_are_the_latest(self):
        self.write(PAUSED)
        self.write(Condition("delivery_paused", "It paused again.", "Resume it."))
        assert Alert.objects.get().says == "It paused again."

    def test_nobody_resolves_what_he_cannot_judge(self):
        self.write(PAUSED)
        self.write(competence=("worker_gone",))
        assert Alert.objects.get().resolved_at is None

    def test_a_word_that_was_not_delivered_is_tried_again_later_each_time(self):
        self.write(PAUSED, channels=("deaf",))
        deaf = Deaf()
        waits, at = [], NOW
        while (due := AlertMessage.objects.get().due_at) is not None:
            waits.append((due - at).total_seconds())
            at = due
            book.send_due("main", {"deaf": deaf}, "", at)
        assert waits == [0, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
        message = AlertMessage.objects.get()
        assert (message.attempts, message.sent_at, message.error) == (10, None, "nobody listens")

    def test_a_word_is_delivered_once_however_many_send(self):
        self.write(PAUSED)
        heard = Heard()
        assert book.send_due("main", {"log": heard}, "https://x", NOW) == 1
        assert book.send_due("main", {"log": heard}, "https://x", NOW + timedelta(days=1)) == 0
        (notice,) = heard.notices
        assert (notice.title, notice.says, notice.url) == (
            "Delivery has paused by itself",
            "It paused.",
            "https://x",
        )

    def test_a_word_for_a_channel_that_is_gone_is_given_up(self):
        self.write(PAUSED, channels=("webhook",))
        book.send_due("main", {}, "", NOW)
        message = AlertMessage.objects.get()
        assert (message.due_at, message.error) == (None, "this channel is not configured any more")


def waiting(sessions):
    return Condition("sessions_waiting", f"{sessions} wait.", "Resolve them.", sessions)


class Deaf:
    def send(self, notice):
        raise ChannelError("nobody listens")


class Heard:
    def __init__(self):
        self.notices = []

    def send(self, notice):
        self.notices.append(notice)


class TestTheLog:
    def test_it_says_what_happened_and_what_to_do(self):
        with capture_logs() as logs:
            LogChannel().send(NOTICE)
        (line,) = logs
        assert (line["log_level"], line["action"]) == ("error", "alert.opened")
        assert (line["says"], line["do"]) == ("Lago answered 503", "Check Lago.")

    def test_that_there_is_more_of_it_is_an_error_too(self):
        with capture_logs() as logs:
            LogChannel().send(replace(NOTICE, grown=True))
        assert (logs[0]["log_level"], logs[0]["action"]) == ("error", "alert.grown")
        assert logs[0]["event"] == "More: Lago cannot be used"

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(45, "45 s"), (300, "5 min"), (3_600, "1 h"), (7_500, "2 h 5 min"), (273_900, "3 d 4 h")],
    )
    def test_that_it_is_over_says_how_long_it_took(self, seconds, words):
        ended = replace(NOTICE, resolved_at=NOW + timedelta(seconds=seconds))
        assert ended.text == f"This is over, after {words}. It was: Lago answered 503"

    def test_the_end_of_it_is_no_error(self):
        with capture_logs() as logs:
            LogChannel().send(over(NOTICE))
        assert (logs[0]["log_level"], logs[0]["event"]) == ("info", "Over: Lago cannot be used")


def over(notice):
    return replace(notice, resolved_at=NOW + timedelta(minutes=90))


class Receiver(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, status, headers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.headers, self.received = status, headers, []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def receiver(status=200, **headers):
    with Receiver(status, headers) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}/hook?to=ops"
        finally:
            server.shutdown()
            thread.join()


class TestTheWebhook:
    def test_it_gets_the_alert_signed(self):
        with receiver() as (server, url):
            WebhookChannel(url, SECRET).send(NOTICE)
        ((path, headers, body),) = server.received
        assert path == "/hook?to=ops"
        signed = hmac.new(
            SECRET.encode(), headers["OCPP-Billing-Timestamp"].encode() + b"." + body, hashlib.sha256
        )
        assert headers["OCPP-Billing-Signature"] == "v1=" + signed.hexdigest()
        assert headers["OCPP-Billing-Message"] == "7"
        assert json.loads(body) == {
            "id": 7,
            "source": "main",
            "alert": "lago_failing",
            "state": "open",
            "grown": False,
            "title": "Lago cannot be used",
            "says": "Lago answered 503",
            "do": "Check Lago.",
            "opened_at": "2026-03-17T12:00:00Z",
            "resolved_at": None,
            "portal": "https://billing.example.org",
        }

    def test_it_gets_the_end_of_it_too(self):
        with receiver() as (server, url):
            WebhookChannel(url, SECRET).send(over(NOTICE))
        body = json.loads(server.received[0][2])
        assert (body["state"], body["resolved_at"]) == ("resolved", "2026-03-17T13:30:00Z")

    def test_a_redirect_is_not_followed(self):
        with receiver() as (target, target_url), receiver(302, Location=target_url) as (_, url):
            with pytest.raises(ChannelError, match="redirects are not followed"):
                WebhookChannel(url, SECRET).send(NOTICE)
            assert target.received == []

    def test_an_error_is_not_delivered(self):
        with receiver(500) as (_, url), pytest.raises(ChannelError, match="answered 500"):
            WebhookChannel(url, SECRET).send(NOTICE)

    def test_nobody_there_is_not_delivered(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(ChannelError, match="could not be reached"):
            WebhookChannel(f"http://127.0.0.1:{port}/", SECRET).send(NOTICE)

    @pytest.mark.parametrize(
        "address",
        [
            "169.254.169.254",
            "169.254.0.1",
            "fe80::1",
            "fe80::1%eth0",
            "fd00:ec2::254",
            "100.100.100.200",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
            "64:ff9b:1::a9fe:a9fe",
            "2001:0:a9fe:a9fe::1",
            "2001:0:cb00:7105:0:ffff:5601:5601",
            "2001:db8::5efe:a9fe:a9fe",
            "fec0::1",
            "168.63.129.16",
        ],
    )
    def test_addresses_where_no_webhook_is_are_refused(self, address):
        assert is_forbidden(ipaddress.ip_address(address))

    @pytest.mark.parametrize(
        "address", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "203.0.113.5", "::1", "fd00::5", "2001:db8::1"]
    )
    def test_others_may_be_a_webhook(self, address):
        assert not is_forbidden(ipaddress.ip_address(address))

    def test_a_name_is_judged_by_every_address_it_has(self, monkeypatch):
        answers(monkeypatch, "203.0.113.5", "169.254.169.254")
        with pytest.raises(ChannelError, match=r"hooks\.example\.org is 169\.254\.169\.254") as caught:
            checked_address("hooks.example.org", 443)
        assert caught.value.final

    def test_it_connects_to_the_address_that_was_checked(self, monkeypatch):
        """A name that means something else a moment later leads nowhere else."""
        with receiver() as (server, _):
            port = server.server_port
            asked = answers(monkeypatch, "127.0.0.1")
            WebhookChannel(f"http://hooks.example.org:{port}/", SECRET).send(NOTICE)
        assert asked == ["hooks.example.org"]  # once
        assert server.received[0][1]["Host"] == f"hooks.example.org:{port}"


def answers(monkeypatch, *addresses):
    """Let every name mean these addresses; returns the names that were asked for."""
    asked = []
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host in addresses:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(webhook.socket, "getaddrinfo", getaddrinfo)
    return asked


class TestMail:
    @staticmethod
    def channel(port, security="none"):
        recipients = ("ops@example.org", "cfo@example.org")
        server = MailServer("127.0.0.1", port, security, None, None, "billing@example.org")
        return MailChannel(server, recipients)

    def test_everybody_gets_what_happened_and_what_to_do(self):
        with mail_server() as server:
            self.channel(server.server_address[1]).send(NOTICE)
        (message,) = server.messages
        assert server.recipients == ["<ops@example.org>", "<cfo@example.org>"]
        assert "Subject: OCPP Billing Sync: Lago cannot be used" in message
        assert "Lago answered 503" in message
        assert "What to do: Check Lago." in message
        assert "https://billing.example.org" in message

    def test_a_server_that_refuses_it_is_tried_again(self):
        with mail_server(refuses="MAIL") as server, pytest.raises(ChannelError, match="did not take"):
            self.channel(server.server_address[1]).send(NOTICE)

    def test_a_connection_that_cannot_be_secured_is_not_used(self):
        with mail_server(refuses="STARTTLS") as server, pytest.raises(ChannelError, match="EMAIL_SECURITY"):
            self.channel(server.server_address[1], "starttls").send(NOTICE)
        assert server.messages == []

    @pytest.mark.parametrize(
        ("refuses", "security", "username", "password", "says", "look_at"),
        [
            (
                "MAIL",
                "none",
                None,
                None,
                "did not take billing@example.org as the sender: 550 no",
                "EMAIL_FROM",
            ),
            ("RCPT", "none", None, None, "did not take the message for ops@example.org", "ALERT_EMAIL_TO"),
            ("DATA", "none", None, None, "did not take the message: 550 no", "whoever runs that server"),
            ("AUTH", "none", "me", "secret", "refuses EMAIL_USERNAME and EMAIL_PASSWORD: 550 no", ""),
            ("", "starttls", None, None, "cannot be used so: STARTTLS extension not", "EMAIL_SECURITY"),
            ("", "none", "me", "Müller", "EMAIL_PASSWORD holds a character that cannot be sent", ""),
            ("", "tls", None, None, "makes no secure connection", "EMAIL_SECURITY"),
            (None, "none", None, None, "cannot be reached: Connection refused", "EMAIL_HOST, EMAIL_PORT and"),
        ],
    )
    def test_what_goes_wrong_names_the_settings_to_look_at(
        self, refuses, security, username, password, says, look_at
    ):
        with mail_server(refuses=refuses or "", offers="AUTH PLAIN" if username else "") as server:
            port = server.server_address[1] if refuses is not None else 9  # nothing listens there
            mail = MailServer("127.0.0.1", port, security, username, password, "billing@example.org")
            with pytest.raises(MailError) as failed:
                mail.send(["ops@example.org"], "Subject", "Text")
        assert says in str(failed.value)
        assert look_at in str(failed.value)
        assert not str(failed.value).endswith(".")
        assert password is None or password not in str(failed.value)


class TestWhichChannels:
    @staticmethod
    def config(**settings):
        from ocpp_billing.config import load_config

        return load_config({"OCPP_BILLING_ENV_FILE": "", **settings})

    def test_the_log_always(self):
        assert list(channels_of(self.config())) == ["log"]

    def test_mail_and_webhook_where_they_are_configured(self):
        config = self.config(
            ALERT_EMAIL_TO="ops@example.org",
            EMAIL_HOST="mail.example.org",
            EMAIL_FROM="billing@example.org",
            ALERT_WEBHOOK_URL="https://hooks.example.org/",
            ALERT_WEBHOOK_SECRET=SECRET,
        )
        assert list(channels_of(config)) == ["log", "email", "webhook"]
        assert incomplete(config) == []

    def test_half_a_configuration_is_named(self):
        config = self.config(ALERT_EMAIL_TO="ops@example.org", ALERT_WEBHOOK_URL="https://hooks.example.org/")
        assert list(channels_of(config)) == ["log"]
        assert [sentence.split(": ")[1].split()[0] for sentence in incomplete(config)] == [
            "EMAIL_HOST",
            "EMAIL_FROM",
            "ALERT_WEBHOOK_SECRET",
        ]


class TestTheWorkerIsGone:
    PATIENCE = timedelta(minutes=2)

    def judge(self, now, seen_at, *, alive=False, watched_since=NOW):
        liveness = Liveness(alive, seen_at, seen_at, None, None, None)
        return judge_worker(liveness, now, self.PATIENCE, watched_since)

    def test_one_that_is_alive_is_not_gone(self):
        assert self.judge(NOW + timedelta(days=1), NOW, alive=True) is None

    def test_a_restart_is_no_alert(self):
        assert self.judge(NOW + timedelta(seconds=119), NOW) is None

    def test_one_that_stays_away_is(self):
        condition = self.judge(NOW + timedelta(minutes=2), NOW)
        assert condition is not None
        assert "2026-03-17 12:00 UTC" in condition.says

    def test_who_has_just_begun_to_watch_waits_too(self):
        """Web and worker are started together, and the worker was stopped yesterday."""
        assert self.judge(NOW + timedelta(minutes=1), NOW - timedelta(days=1)) is None
        assert self.judge(NOW + timedelta(minutes=2), NOW - timedelta(days=1)) is not None

    def test_one_that_never_came_is_gone_as_well(self):
        condition = self.judge(NOW + timedelta(minutes=2), None)
        assert condition is not None
        assert condition.says.startswith("No worker was heard of yet.")

    def test_the_web_application_notices_it_and_its_return(self, world, monkeypatch):
        monkeypatch.setattr("ocpp_billing.alerts.watchman.LOOKS_EVERY_S", 0.05)
        monkeypatch.setattr("ocpp_billing.alerts.watchman.SENDS_EVERY_S", 0.05)
        Source.objects.create(name="main")
        with WorkerGuard(world.config()):
            world.clock.advance(minutes=3)
            alert = eventually(lambda: Alert.objects.filter(condition="worker_gone").first())
            eventually(lambda: AlertMessage.objects.exclude(sent_at=None).count() == 1)
            WorkerHeartbeat.objects.create(
                worker="w", source_id="main", leader=True, seen_at=world.clock.now()
            )
            eventually(lambda: Alert.objects.get(pk=alert.pk).resolved_at)
            eventually(lambda: AlertMessage.objects.exclude(sent_at=None).count() == 2)
