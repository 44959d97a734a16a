"""Access: who may do what, told by a token."""

import hmac
from typing import Annotated

from fastapi import Depends, HTTPException, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

_BEARER = HTTPBearer(auto_error=False)


def needing(token: SecretStr | None) -> list[params.Depends]:
    """What lets through who has the token; nothing if there is none."""
    if token is None:
        return []
    expected = token.get_secret_value().encode()

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        shown = "" if given is None else given.credentials
        if not hmac.compare_digest(shown.encode("latin-1"), expected):
            why = "this token is not the one" if shown else "a token is needed"
            raise HTTPException(
                401, f"{why}: send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )

    return [Depends(check)]
