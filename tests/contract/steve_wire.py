"""One request to a simulated StEvE over a real socket, and the recorded exchanges to compare it with."""

import base64
import http.client
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ocpp_billing.simulators.steve import SteveSimulator

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"
RELEASES = ("3.7.1", "3.9.0", "3.14.1")
COMPARED_HEADERS = ("content-type", "location", "content-disposition")
LAST_CALL_BEFORE_TRAFFIC = {"3.7.1": 10, "3.9.0": 11, "3.14.1": 11}
BULK_TAGS = [f"TAG-BULK-{number:02d}" for number in range(50)]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def ids(self) -> list[int]:
        return [row["id"] for row in self.json]


def call(
    simulator: SteveSimulator,
    method: str,
    path: str,
    *,
    body: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send exactly these headers, beside Host; ``path`` begins below the context path."""
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=30)
    try:
        data = None if body is None else body.encode()
        connection.request(method, simulator.api.context_path + path, data, headers or {})
        response = connection.getresponse()
        text = response.read().decode(
            "latin-1" if "csv" in (response.headers["content-type"] or "") else "utf-8"
        )
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, text)
    finally:
        connection.close()


def credentials(
    simulator: SteveSimulator, *, username: str = "admin", password: str = "steve-secret"
) -> dict[str, str]:
    if not simulator.release.basic_auth:
        return {"STEVE-API-KEY": password}
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


def get(simulator: SteveSimulator, path: str, **headers: str) -> Answer:
    return call(
        simulator,
        "GET",
        f"/api/v1{path}",
        headers={"Accept": "application/json", **credentials(simulator), **headers},
    )


def send(simulator: SteveSimulator, method: str, path: str, body: Any = None) -> Answer:
    headers = {"Accept": "application/json", "Content-Type": "application/json", **credentials(simulator)}
    return call(
        simulator, method, f"/api/v1{path}", body=None if body is None else json.dumps(body), headers=headers
    )


def transaction(simulator: SteveSimulator, transaction_id: int) -> dict[str, Any]:
    [row] = get(simulator, f"/transactions?transactionPk={transaction_id}").json
    return row


# -- recorded exchanges ------------------------------------------------------------------------


@dataclass
class Exchange:
    number: int
    name: str
    request: dict[str, Any]
    response: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.number:03d}-{self.name}"

    @property
    def answered_at(self) -> datetime | None:
        body = self.response["body"]
        stamp = body.get("timestamp") if isinstance(body, dict) else None
        return None if stamp is None else datetime.fromisoformat(stamp)


def exchanges(release: str) -> list[Exchange]:
    found = []
    for file in sorted((RECORDINGS / f"steve-{release}").glob("[0-9]*.json")):
        content = json.loads(file.read_text())
        number, _, name = file.stem.partition("-")
        found.append(Exchange(int(number), name, content["request"], content["response"]))
    return found


def exchange(release: str, name: str) -> Exchange:
    return next(e for e in exchanges(release) if e.name == name)


def recorded_json(release: str, file: str) -> Any:
    return json.loads((RECORDINGS / f"steve-{release}" / file).read_text())


def replay(simulator: SteveSimulator, exchange: Exchange) -> Answer:
    """The recorded request, with the credentials that its name tells (they were not recorded)."""
    request = exchange.request
    headers = dict(request["headers"])
    if exchange.name == "auth-wrong-password":
        headers |= credentials(simulator, password="wrong")
    elif exchange.name == "auth-unknown-user":
        headers |= credentials(simulator, username="nobody")
    elif request["auth"] != "none":
        headers |= credentials(simulator)
    body = request.get("raw_body")
    if body is None and "body" in request:
        body = json.dumps(request["body"])
    if exchange.answered_at is not None:
        simulator.set_clock(exchange.answered_at, frozen=True)
    return call(simulator, request["method"], request["path"], body=body, headers=headers)


def differences(simulator: SteveSimulator, exchange: Exchange, answer: Answer) -> dict[str, Any]:
    """Where an answer is not the recorded one: status, header or body, key order included."""
    recorded = exchange.response
    port = {"3.14.1": 18314, "3.9.0": 18390, "3.7.1": 18371}[str(simulator.release)]
    text = answer.text.replace(f":{simulator.port}/", f":{port}/")
    headers = {
        name: value.replace(f":{simulator.port}/", f":{port}/")
        for name, value in answer.headers.items()
        if name in COMPARED_HEADERS
    }
    wanted = recorded["body"]
    if wanted is None:
        wanted = ""
    elif recorded["is_json"]:
        wanted = json.dumps(wanted)
        text = json.dumps(json.loads(text)) if text else text
    found = {}
    for part, expected, got in (
        ("status", recorded["status"], answer.status),
        ("headers", recorded["headers"], headers),
        ("body", wanted, text),
    ):
        if expected != got:
            found[part] = {"recorded": expected, "simulated": got}
    return found


def register_tags(simulator: SteveSimulator) -> None:
    """The tags that were registered before the recording without an exchange being kept."""
    for id_tag in ("TAG-BOB", "TAG-CAROL", "TAG-DAVE", "TAG-FLEET"):
        simulator.add_tag(id_tag)
