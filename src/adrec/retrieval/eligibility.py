"""Eligibility: which ads a request may be shown, from the ads' fields and from who paused what.

A request demands values of categorical fields (`only`) or forbids them (`never`), by their raw
text. Each term becomes an `AdSet`; what requests ask for again is remembered.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adrec.data.parsing import as_text
from adrec.errors import RequestError
from adrec.features.raw_column import RawColumn
from adrec.retrieval.ad_set import AdSet

Value = str | int | float | bool | None
Terms = Mapping[str, Collection[Value]]
_Key = tuple[tuple[str, bool, frozenset[str | None]], ...]

_REMEMBERED = 64  # combinations of terms, each a bit an ad: 8 MB of a million


@dataclass(frozen=True)
class Eligibility:
    """Which ads of a catalogue may be shown. A change makes another one.

    raw: exact values of the fields that may be asked for. active: ads that are there and not
    paused; None: all. Safe to ask from many threads at once.
    """

    raw: Mapping[str, RawColumn]
    active: AdSet | None = None
    _known: OrderedDict[_Key, AdSet] = field(default_factory=OrderedDict, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def of(self, only: Terms, never: Terms) -> AdSet | None:
        """Ads whose every `only` field has one of its values and no `never` field has one; None
        where all are active and nothing is asked. The same question gives the same object.

        Raises:
            RequestError: a field that is no categorical one of ads.
        """
        key = (*self._terms(only, "only", False), *self._terms(never, "never", True))
        if not key:
            return self.active
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        for name, forbidden, values in key:
            having = self._having(self.raw[name], values)
            term = ~having if forbidden else having
            found = term if found is None else found & term
        assert found is not None
        if self.active is not None:
            found &= self.active
        with self._lock:
            found = self._known.setdefault(key, found)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _terms(self, terms: Terms, name: str, forbidden: bool) -> _Key:
        unknown = sorted(set(terms) - set(self.raw))
        if unknown:
            raise RequestError(
                f"{name}: ads have no categorical field called {', '.join(unknown)}; they have "
                f"{', '.join(self.raw) or 'none'}"
            )
        wanted = ((one, frozenset(map(as_text, terms[one]))) for one in sorted(terms))
        return tuple((one, forbidden, values) for one, values in wanted)

    def _having(self, column: RawColumn, values: Collection[str | None]) -> AdSet:
        codes = column.codes(list(values))
        if len(codes) == 1:
            return AdSet.of(column.codes_A == codes[0])
        return AdSet.of(_within(codes, len(column.values))[column.codes_A])


def _within(codes: Sequence[int], size: int) -> NDArray[np.bool_]:
    within = np.zeros(size, np.bool_)
    within[list(codes)] = True
    return within
