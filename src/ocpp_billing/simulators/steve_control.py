"""``/_sim/…`` of the StEvE simulator: its methods for processes that cannot call them.

JSON in, JSON out, loopback only. What StEvE itself refuses is a 409 with the reason.

==============================  ============================================================
POST start                      charge_box, connector, id_tag, at, meter_wh, [committed]
POST commit, roll-back          transaction_id
POST meter                      charge_box, connector, samples, [transaction_id]
POST stop                       transaction_id, charge_box, at, meter_wh, [id_tag], [reason],
                                [transaction_data], [data_stored], [delivered_wh]
POST transaction-data           transaction_id: what came with its stop is stored, too
POST manual-stop                transaction_id
POST delivered                  transaction_id, delivered_wh, [ended]
POST tags                       id_tag, [parent], [max_active], [note]
POST parent                     id_tag, parent
POST user                       id_tag, user_pk
POST delete-tag                 id_tag
POST charge-boxes               charge_box
POST delete-charge-box          charge_box
POST online                     charge_boxes: the whole list
POST skip-ids                   count
POST inject                     raw, [transaction_id]
POST snapshot, restore          [name]
POST restart-database, reset
POST generate                   count, [seed], [days], [open_count], [stuck_count], [tag_count], [end]
POST load-recording             [release], [state], [shift_s]
GET ledger, state, operations
==============================  ============================================================

Times are ISO strings or milliseconds; samples are objects with the fields of
:class:`ocpp_billing.simulators.steve_store.Sample`.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.server import Response
from ocpp_billing.simulators.steve_central import CallError
from ocpp_billing.simulators.steve_store import Sample, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.simulators.server import Request
    from ocpp_billing.simulators.steve import SteveSimulator

Body = dict[str, Any]


def control(simulator: SteveSimulator, request: Request, command: str) -> Response | None:
    """Answer a command, or None where there is no such one.

    Raises:
        ValueError, KeyError, TypeError: for a body that does not fit the command.
    """
    if request.method == "GET":
        read = _reads(simulator).get(command)
        return None if read is None else Response.of_json(read())
    if request.method != "POST":
        return None
    body = request.json() if request.body else {}
    if not isinstance(body, dict):
        raise TypeError("the body must be an object")
    try:
        if command in (silent := _silent_acts(simulator)):
            silent[command](body)
            return Response.of_json({"ok": True})
        act = _acts(simulator).get(command)
        return None if act is None else Response.of_json(act(body))
    except (CallError, StoreError) as error:
        return Response.of_json({"error": f"{type(error).__name__}: {error}"}, 409)


def _reads(simulator: SteveSimulator) -> dict[str, Callable[[], Any]]:
    return {
        "ledger": lambda: [asdict(entry) for entry in simulator.ledger()],
        "state": lambda: {**simulator.central.state(), "now": simulator.now().isoformat()},
        "operations": lambda: [asdict(operation) for operation in simulator.remote_operations],
    }


def _silent_acts(simulator: SteveSimulator) -> dict[str, Callable[[Body], None]]:
    return {
        "commit": lambda body: simulator.commit(**body),
        "roll-back": lambda body: simulator.roll_back(**body),
        "transaction-data": lambda body: simulator.store_transaction_data(**body),
        "manual-stop": lambda body: simulator.manual_stop(**body),
        "delivered": lambda body: simulator.note_delivered(**body),
        "user": lambda body: simulator.set_user(**body),
        "delete-tag": lambda body: simulator.delete_tag(**body),
        "delete-charge-box": lambda body: simulator.delete_charge_box(**body),
        "snapshot": lambda body: simulator.snapshot(**body),
        "restore": lambda body: simulator.restore(**body),
        "restart-database": lambda body: simulator.restart_database(**body),
        "reset": lambda body: simulator.reset(**body),
    }


def _acts(simulator: SteveSimulator) -> dict[str, Callable[[Body], Any]]:
    return {
        "start": lambda body: asdict(simulator.begin(**body)),
        "meter": lambda body: {"stored": simulator.meter_values(**_with_samples(body, "samples"))},
        "stop": lambda body: _stop(simulator, body),
        "tags": lambda body: asdict(simulator.add_tag(**body)),
        "parent": lambda body: asdict(simulator.set_parent(**body)),
        "charge-boxes": lambda body: {"charge_box_pk": simulator.register_charge_box(**body)},
        "online": lambda body: _online(simulator, body),
        "skip-ids": lambda body: {"next_transaction_id": simulator.skip_ids(**body)},
        "inject": lambda body: {"transaction_id": simulator.inject(**body)},
        "generate": lambda body: asdict(simulator.generate(**body)),
        "load-recording": lambda body: _load(simulator, body),
    }


def _stop(simulator: SteveSimulator, body: Body) -> Body:
    why = simulator.stop_transaction(**_with_samples(body, "transaction_data"))
    return {"stored": why is None, "why": why}


def _online(simulator: SteveSimulator, body: Body) -> Body:
    simulator.online.clear()
    simulator.online.update(body["charge_boxes"])
    return {"charge_boxes": sorted(simulator.online)}


def _load(simulator: SteveSimulator, body: Body) -> Body:
    shift = timedelta(seconds=body.get("shift_s", 0))
    simulator.load_recording(body.get("release"), state=body.get("state", "012"), shift=shift)
    return simulator.central.state()


def _with_samples(body: Body, name: str) -> Body:
    return {**body, name: [Sample(**sample) for sample in body.get(name, ())]}
