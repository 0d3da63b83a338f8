"""Remote operations (≥3.11): whom StEvE refuses and what it answers when it has sent one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocpp_billing.simulators.steve_central import CentralSystem

OPERATIONS = frozenset(
    {
        "ChangeAvailability",
        "ChangeConfiguration",
        "ClearCache",
        "GetDiagnostics",
        "RemoteStartTransaction",
        "RemoteStopTransaction",
        "Reset",
        "UnlockConnector",
        "UpdateFirmware",
        "ReserveNow",
        "CancelReservation",
        "DataTransfer",
        "GetConfiguration",
        "GetLocalListVersion",
        "SendLocalList",
        "TriggerMessage",
        "GetCompositeSchedule",
        "ClearChargingProfile",
        "SetChargingProfile",
        "ExtendedTriggerMessage",
        "GetLog",
        "SignedUpdateFirmware",
        "InstallCertificate",
        "DeleteCertificate",
        "GetInstalledCertificateIds",
    }
)
INVALID = "Error understanding the request"
NOT_ACTIVE = "This transaction is not active at this station."
NOBODY_ELIGIBLE = (
    "No stations are eligible for communication. Ensure that the chargeBox IDs are correct "
    "and the stations are online."
)
TAG_NOT_ELIGIBLE = "The idTag is not eligible."


@dataclass(frozen=True, slots=True)
class RemoteOperation:
    """An operation that reached its charge boxes."""

    name: str
    charge_boxes: tuple[str, ...]
    parameters: dict[str, Any]


def operate(
    name: str,
    form: dict[str, Any],
    central: CentralSystem,
    online: set[str],
    sent: list[RemoteOperation],
) -> dict[str, Any] | str:
    """Send an operation to charge boxes that are online; they accept everything and do nothing.

    Args:
        name: one of :data:`OPERATIONS`.
        form: the request's body.
        central: whose transactions and tags are asked.
        online: charge boxes that can be reached.
        sent: gets what was sent.

    Returns:
        StEvE's answer, or the message of its 400.
    """
    boxes = form.get("chargeBoxIdList")
    if not isinstance(boxes, list) or not boxes or not all(isinstance(box, str) for box in boxes):
        return INVALID
    if name == "RemoteStopTransaction":
        transaction_id = form.get("transactionId")
        if not isinstance(transaction_id, int) or len(boxes) != 1:
            return INVALID
        if not _active_at(central, transaction_id, boxes[0]):
            return NOT_ACTIVE
    if name == "RemoteStartTransaction":
        id_tag = form.get("idTag")
        if not isinstance(id_tag, str) or not id_tag or len(boxes) != 1:
            return INVALID
        if central.id_tag_status(id_tag) != "Accepted":
            return TAG_NOT_ELIGIBLE
    reached = [box for box in boxes if box in online]
    if not reached:
        return NOBODY_ELIGIBLE
    sent.append(RemoteOperation(name, tuple(reached), form))
    return {
        "taskId": len(sent),
        "taskFinished": True,
        "successResponses": [{"chargeBoxId": box, "response": "Accepted"} for box in reached],
        "errorResponses": [],
        "exceptions": [],
    }


def _active_at(central: CentralSystem, transaction_id: int, charge_box: str) -> bool:
    store = central.store
    row = store.row_of(transaction_id)
    if row is None or row not in store.open_rows:
        return False
    return store.connectors[store.connector_of[row]].charge_box_pk == store.find_charge_box(charge_box)
