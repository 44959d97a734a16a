"""How long faults last: in their short form, or as `make test-faults` runs them."""

import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Form:
    """How many kills, of small processes and of servers, and how long an outage."""

    kills: int
    servers: int
    outage_s: float
    rate: float


@pytest.fixture(scope="session")
def form() -> Form:
    """Short, or long if ADREC_FAULTS says so."""
    if os.environ.get("ADREC_FAULTS") == "long":
        return Form(kills=200, servers=10, outage_s=30.0, rate=20.0)
    return Form(kills=6, servers=2, outage_s=3.0, rate=15.0)
