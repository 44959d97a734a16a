"""What a request demands and forbids, against a filter of the table itself."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.errors import RequestError
from adrec.features.raw_column import RawColumn
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.eligibility import Eligibility

LANGUAGES, SHOPS = ["de", "en", "fr", None], ["7", "8", "9", "10", None]
TERMS = st.fixed_dictionaries(
    {},
    optional={
        "language": st.lists(st.sampled_from([*LANGUAGES, "xx"]), max_size=3),
        "shop": st.lists(st.sampled_from([*SHOPS, 7, 8.0, "77"]), max_size=3),
    },
)


def offered(seed: int = 0) -> tuple[dict[str, list[str | None]], Eligibility]:
    rng = np.random.default_rng(seed)
    table = {
        "language": [LANGUAGES[i] for i in rng.integers(4, size=30)],
        "shop": [SHOPS[i] for i in rng.integers(5, size=30)],
    }
    raw = {n: RawColumn.of(pl.Series(v, dtype=pl.String)) for n, v in table.items()}
    return table, Eligibility(raw)


@given(only=TERMS, never=TERMS, paused=st.sets(st.integers(1, 30)))
def test_terms_against_the_table(only, never, paused) -> None:
    table, eligibility = offered()
    active = (~AdSet.none(31)).without(np.array(sorted(paused), np.int64)) if paused else None
    found = Eligibility(eligibility.raw, active).of(only, never)

    def text(value: object) -> str | None:
        return None if value is None else str(int(value)) if value != str(value) else str(value)

    expected = [
        row
        for row in range(1, 31)
        if row not in paused
        and all(table[n][row - 1] in [text(v) for v in values] for n, values in only.items())
        and not any(table[n][row - 1] in [text(v) for v in values] for n, values in never.items())
    ]
    if found is None:
        assert expected == list(range(1, 31))
    else:
        assert [row for row in found.members().tolist() if row > 0] == expected


def test_nothing_asked_is_no_filter() -> None:
    assert offered()[1].of({}, {}) is None


def test_the_same_question_gives_the_same_object() -> None:
    """Requests with it are searched for together, and the bits are made once."""
    eligibility = offered()[1]
    one = eligibility.of({"shop": ["7", "8"]}, {"language": ["de"]})
    assert eligibility.of({"shop": (8, 7.0, "7")}, {"language": {"de"}}) is one
    assert eligibility.of({"shop": ["7", "8"]}, {}) is not one
    for shop in range(200):  # what was not asked for lately is forgotten
        eligibility.of({"shop": [shop]}, {})
    assert len(eligibility._known) == 64


def test_an_unknown_field() -> None:
    eligibility = offered()[1]
    with pytest.raises(RequestError, match="only: ads have no categorical field called colour"):
        eligibility.of({"colour": ["red"]}, {})
    with pytest.raises(RequestError, match=r"never: .*called colour; they have language, shop"):
        eligibility.of({"shop": ["7"]}, {"colour": ["red"]})
