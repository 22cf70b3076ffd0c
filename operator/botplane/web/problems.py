"""The one translation of the two families of errors into HTTP."""

from __future__ import annotations

import math
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from fastapi.responses import JSONResponse

from botplane.errors import Rejected, Retryable

if TYPE_CHECKING:
    from collections.abc import Mapping

STATUS_OF: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "Unauthenticated": HTTPStatus.UNAUTHORIZED,
        "Forbidden": HTTPStatus.FORBIDDEN,
        "ContentTypeUnsupported": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "BodyTooLarge": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "BodyTooSlow": HTTPStatus.REQUEST_TIMEOUT,
        "PeriodNotFound": HTTPStatus.NOT_FOUND,
        "TenantNotFound": HTTPStatus.NOT_FOUND,
        "TooManyEvents": HTTPStatus.TOO_MANY_REQUESTS,
    }
)
RETRY_AFTER_SECONDS: Final = 2.0
_UNREAD: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    }
)
"""The body is not read to its end: whoever goes on sending it is cut off."""


def problem(error: Rejected | Retryable) -> JSONResponse:
    """Return an error as an answer: 4xx for what the caller must change, 429 or 503 for later."""
    content = {"reason": error.reason, "message": error.message}
    if isinstance(error, Retryable):
        status = STATUS_OF.get(error.reason, HTTPStatus.SERVICE_UNAVAILABLE)
        after = math.ceil(error.after_seconds or RETRY_AFTER_SECONDS)
        return JSONResponse(content, status, headers={"Retry-After": str(after)})
    status = STATUS_OF.get(error.reason, HTTPStatus.BAD_REQUEST)
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    if status in _UNREAD:
        headers["Connection"] = "close"
    return JSONResponse(content, status, headers=headers)
