"""Notices: what an exchange tells of a bid, by the URLs that the bid brought.

Exchanges have no token of ours. Where one is needed to report events, the URLs carry a code that
only who has it can work out (HMAC, RFC 2104): who merely asked for ads cannot report them as shown.
"""

import hashlib
import hmac
import json
from urllib.parse import quote

from pydantic import SecretStr

from adrec.serving.wire import EventIn

_MACROS = "price=${AUCTION_PRICE}&currency=${AUCTION_CURRENCY}"


class Notices:
    """URLs of notices, and what they say once they are called."""

    def __init__(self, url: str | None, token: SecretStr | None) -> None:
        """Begin.

        Args:
            url: where exchanges reach the server; None: bids bring no URLs.
            token: that is needed to report events; None: none is.
        """
        self._url = None if url is None else url.rstrip("/")
        self._secret = None if token is None else token.get_secret_value().encode()

    def url(self, kind: str, request_id: str, ad_id: str) -> str | None:
        """To be called when a bid has won (`win`) or is billed (`billing`)."""
        if self._url is None:
            return None
        query = f"request={quote(request_id, safe='')}&ad={quote(ad_id, safe='')}&{_MACROS}"
        code = self._code(request_id, ad_id)
        return f"{self._url}/openrtb2/{kind}?{query}" + (f"&code={code}" if code else "")

    def is_ours(self, request_id: str, ad_id: str, code: str) -> bool:
        """Whether a notice is of a bid of this server, or of one with the same token."""
        return hmac.compare_digest(self._code(request_id, ad_id).encode(), code.encode())

    def _code(self, request_id: str, ad_id: str) -> str:
        if self._secret is None:
            return ""
        both = json.dumps([request_id, ad_id]).encode()
        return hmac.digest(self._secret, both, "sha256").hex()


def billed(request_id: str, ad_id: str) -> EventIn:
    """The event of a billing notice: the ad was shown. Sent twice it is the same event."""
    both = hashlib.sha256(f"{request_id}-{ad_id}".encode()).hexdigest()  # the ids may be too long
    return EventIn(event_id=f"billed-{both}", kind="impression", request_id=request_id, ad_id=ad_id)
