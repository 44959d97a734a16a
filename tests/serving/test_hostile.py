"""Hostile input: whatever is sent, the server answers, with no 5xx, and goes on."""

import json
import os
import random

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

_LONG = os.environ.get("ADREC_FAULTS") == "long"
BODIES = 20_000 if _LONG else 600
EXAMPLES = 200 if _LONG else 15
PATHS = ("/v1/recommend", "/v1/events", "/openrtb2/bid", "/v1/ads")


@pytest.mark.parametrize("port", ["http", "admin"])
@pytest.mark.parametrize("mode", GenerationMode)
def test_what_the_document_allows_and_what_it_does_not(serve, mode, port):
    """Requests that schemathesis makes of the OpenAPI document, operation by operation."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", getattr(serve(), port).app)
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        about = operation.definition.raw
        # A path holds any text.
        places = {one["in"] for one in about.get("parameters", [])} - {"path"}
        if mode is GenerationMode.NEGATIVE and not places and "requestBody" not in about:
            continue  # there is nothing to get wrong
        tried.append(operation.label)

        @settings(
            max_examples=EXAMPLES if port == "http" else EXAMPLES // 5,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not _LONG,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case):
            case.call_and_validate(checks=[not_a_server_error])

        send()
    expected = {"POST /v1/recommend", "POST /v1/events", "POST /openrtb2/bid"}
    assert (expected if port == "http" else {"POST /admin/swap"}) <= set(tried)


def valid(path):
    event = {"event_id": "e", "kind": "impression", "request_id": "r", "ad_id": "1", "user": "u"}
    return {
        "/v1/recommend": {"user": "17", "k": 3, "context": {"device": "mobile"}, "exclude": ["1"]},
        "/v1/events": {"events": [event, event | {"kind": "click", "value": 2.5}]},
        "/openrtb2/bid": {"id": "1", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}]},
        "/v1/ads": {"ads": [{"ad_id": "x", "bid_micros": 5, "topic": "a"}]},
    }[path]


ODD = (
    None, True, -1, 2**64, 1e308, -0.0, "", "\u0000", "\ud800", "x" * 5_000, [], {}, [[[]]], "nan",
    {"a": {"b": [1]}}, [None] * 50, "'; DROP TABLE events; --", "../../etc/passwd", "${x}",
)  # fmt: skip


def mangled(content, chance):
    """The same with a value here and there replaced, left out or doubled."""
    if chance.random() < 0.15:
        return chance.choice(ODD)
    if isinstance(content, dict):
        found = {key: mangled(value, chance) for key, value in content.items()}
        if found and chance.random() < 0.2:
            found.pop(chance.choice(list(found)))
        if chance.random() < 0.2:
            found[chance.choice(["", "user", "imp", "k", "\u202e", "x" * 600])] = chance.choice(ODD)
        return found
    if isinstance(content, list):
        return [mangled(value, chance) for value in content] * chance.choice([1, 1, 1, 0, 3])
    return content


def bodies(count):
    """Bodies that are no JSON, JSON of another shape, deep, long, cut off, or nearly right."""
    chance = random.Random(0)
    for number in range(count):
        path = chance.choice(PATHS)
        text = json.dumps(mangled(valid(path), chance)).encode()
        match number % 6:
            case 0:
                text = text[: chance.randrange(len(text) + 1)]
            case 1:
                place = chance.randrange(len(text))
                text = text[:place] + bytes([chance.randrange(256)]) + text[place + 1 :]
            case 2 if chance.random() < 0.2:
                text = b"[" * chance.choice([100, 5_000, 100_000])
            case 3 if chance.random() < 0.2:
                text = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
        yield path, text


def test_malformed_bodies(serve):
    server = serve()
    kinds = ("application/json", "text/plain", "application/json; charset=utf-7", "")
    seen = set()
    for number, (path, text) in enumerate(bodies(BODIES)):
        send = server.http.put if path == "/v1/ads" else server.http.post
        kind = kinds[0] if number % 10 else kinds[number // 10 % 4]
        found = send(path, content=text, headers={"content-type": kind})
        assert found.status_code < 500, (path, text[:300], found.text[:300])
        seen.add(found.status_code)
    assert {200, 422} <= seen
    assert server.recommend(user="17")["ads"]
    assert server.http.get("/v2/health/ready").status_code == 200


def test_a_body_that_is_too_large(server):
    body = b'{"user": "' + b"x" * 2_000_000 + b'"}'
    found = server.http.post("/v1/recommend", content=body)
    assert found.status_code == 413
    parts = (body[i : i + 100_000] for i in range(0, len(body), 100_000))  # without a length
    assert server.http.post("/v1/recommend", content=parts).status_code in (400, 413)


def test_more_than_is_allowed(server):
    many = {"requests": [{"user": "1"}] * 65}
    assert server.http.post("/v1/recommend", json=many).status_code == 422
    assert server.http.post("/v1/recommend", json={"k": 101}).status_code == 422
    assert server.http.get("/v1/ads?limit=1001").status_code == 422


def test_each_request_has_an_id(server):
    mine = server.http.get("/v2/health/live", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    odd = server.http.get("/v2/health/live", headers={"x-request-id": "a b\t"})
    assert len(odd.headers["x-request-id"]) == 32
