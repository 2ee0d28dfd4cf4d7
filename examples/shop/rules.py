"""What the shop calls paid."""

from typing import Any

from tau import per_row


@per_row
def is_paid(row: dict[str, Any]) -> dict[str, Any] | None:
    return row if row["status"] == "paid" else None
