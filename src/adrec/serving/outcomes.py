"""Outcomes: what came of ads of answers, beside what the models expected."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from adrec.data.log_entries import IMPRESSION, Event, LoggedSlate


class Outcomes(NamedTuple):
    """Impressions of answers' ads, their clicks, and how many of those the models expected."""

    impressions: int
    clicks: int
    expected: float

    @classmethod
    def of(cls, slates: Mapping[str, LoggedSlate], events: Sequence[Event], click: str) -> Self:
        """Of some events; those of ads that were shown elsewhere are left out.

        Args:
            slates: by request; that of a user who was erased is missing.
            events: that were added to the log.
            click: name of the task.
        """
        score_of = {
            (request_id, ad.ad_id): ad.score
            for request_id, slate in slates.items()
            for ad in slate.ads
        }
        impressions, clicks, expected = 0, 0, 0.0
        for event in events:
            score = score_of.get((event.request_id, event.ad_id))
            if score is None:
                continue
            clicks += event.kind == click
            if event.kind == IMPRESSION:
                impressions += 1
                expected += score
        return cls(impressions, clicks, expected)
