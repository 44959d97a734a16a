"""Events as a client reports them."""

from typing import Any


def event(
    answer: dict[str, Any],
    kind: str = "impression",
    ad: int = 0,
    event_id: str | None = None,
    **values: Any,
) -> dict[str, Any]:
    """What came of one ad of an answer."""
    ad_id = answer["ads"][ad]["ad_id"]
    key = event_id or f"{answer['request_id']}-{ad_id}-{kind}-{values.get('value')}"
    request = answer["request_id"]
    return {"event_id": key, "kind": kind, "request_id": request, "ad_id": ad_id} | values
