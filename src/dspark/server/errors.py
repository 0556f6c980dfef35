"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.

What a client is told never holds a stack trace, a path of this machine or another's prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import JSONResponse

from dspark.errors import DSparkError, EngineError, QueueFullError, RequestError

RETRY_AFTER_S = 1
_WORDS = {
    400: "The body cannot be read",
    404: "There is nothing at this address",
    405: "This address does not take that method",
}
# Pydantic's words, which its locations make sense of.
_SUBJECT = re.compile(r"^\w+ should ")
_BE, _OBJECT = "should be ", "valid dictionary or object to extract fields from"
_VERBS = ("should ", "is ", "takes ")


class ErrorDetail(BaseModel):
    """What was wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that says no.

    Args:
        status: of HTTP.
        message: for the person who reads it.
        kind: OpenAI's word for the family of the error; "server_error" from 500 on.
        param: the field that is wrong.
        code: OpenAI's word for the case, for programs.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = "server_error" if status >= 500 else kind
        # What a client sent may be no text that can be written down.
        message, param = _writable(message), None if param is None else _writable(param)
        self.detail = ErrorDetail(message=message, type=kind, param=param, code=code)

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {"error": self.detail.model_dump()}

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def refusal(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request cannot be served as it stands."""
    return ApiError(400, message, param=param, code=code)


class Unreadable(HTTPException):
    """A body that is no JSON for us, as FastAPI lets through the error of who reads one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        self.error = refusal(message, param)
        super().__init__(self.error.status, message)


def stopping() -> ApiError:
    """503: the server is on its way out."""
    return ApiError(503, "The server is shutting down", code="shutting_down")


def to_api_error(error: Exception) -> ApiError:
    """The answer to whatever went wrong while a request was served."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        text = "Too many requests are waiting; try again in a moment"
        return ApiError(429, text, kind="rate_limit_error", code="queue_full", headers=headers)
    if isinstance(error, RequestError):
        return refusal(str(error))
    if isinstance(error, EngineError):  # its words are for the operator
        return ApiError(503, "The engine could not answer", code="engine_error")
    if isinstance(error, TimeoutError):
        return ApiError(504, "The request took too long and was ended", code="timeout")
    return ApiError(500, "The server made a mistake; its log has the details", code="internal")


def from_validation(errors: Sequence[Any], body: Any) -> ApiError:
    """400 for a body that does not fit its model; the most specific complaint is told.

    Args:
        errors: pydantic's, of all branches of a union that it tried.
        body: as it was read, whose own keys name the place.
    """
    if errors[0]["type"] == "json_invalid":
        what = str(errors[0]["ctx"]["error"]).removesuffix(" at")
        return refusal(f"The body is not JSON: {what} at character {errors[0]['loc'][-1]}")
    placed = [(_place(error, body), error) for error in errors]
    place = max((place for place, _ in placed), key=len)
    if not place:
        return refusal("The body must be a JSON object in UTF-8, sent as application/json")
    here = [error for other, error in placed if other == place]
    # A value of the right type tells which branch of a union was meant.
    meant = [error for error in here if not error["type"].endswith("_type")][:1] or here
    param = _param(place)
    if meant[0]["type"] == "extra_forbidden":
        return refusal(f"Unknown field: {param[:100]}", param[:100], "unknown_field")
    words = dict.fromkeys(_words(error) for error in meant)
    said = _BE + " or ".join(w.removeprefix(_BE) for w in words) if len(words) > 1 else min(words)
    return refusal(f"{param}{'' if said.startswith(_VERBS) else ':'} {said}", param)


def _words(error: Any) -> str:
    """What is wrong with a value, to be read behind its name."""
    if error["type"] == "union_tag_invalid":
        return f"{_BE}one of {error['ctx']['expected_tags']}"
    if error["type"] == "union_tag_not_found":
        return "is required"
    words = str(error["msg"]).removeprefix("Value error, ").replace("Field required", "is required")
    words = words.replace(" after validation", "").replace(_OBJECT, "valid object")
    return _SUBJECT.sub("should ", words)


def _place(error: Any, body: Any) -> list[str | int]:
    """The keys and indices that lead to the place of an error, without the branches of unions
    that pydantic puts in between."""
    place: list[str | int] = []
    parts = error["loc"][1:]
    for i, part in enumerate(parts):
        there = part in body if isinstance(body, dict) else _is_index(part, body)
        if there:
            body = body[part]
        if there or (error["type"] == "missing" and i == len(parts) - 1):
            place.append(part)
    if error["type"].startswith("union_tag"):
        place.append(error["ctx"]["discriminator"].strip("'"))
    return place


def _is_index(part: str | int, body: Any) -> bool:
    return isinstance(body, list) and isinstance(part, int) and part < len(body)


def _param(place: Sequence[str | int]) -> str:
    """A place as a client writes it: `messages[0].content`."""
    param = str(place[0])
    for part in place[1:]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}"
    return param


def install(app: FastAPI) -> None:
    """Let every error leave the app in OpenAI's shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return to_api_error(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(error.errors(), error.body).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AnyHTTPException)
        if isinstance(error, Unreadable):
            return error.error.response()
        words = _WORDS.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, words, headers=error.headers).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(AnyHTTPException, http)
    for kind in (ApiError, DSparkError, TimeoutError, Exception):
        app.add_exception_handler(kind, answer)
