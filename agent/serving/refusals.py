"""What a request can be refused for, in the shape in which OpenAI's clients expect it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from agent.errors import ServingError

Kind: TypeAlias = Literal["invalid_request_error", "authentication_error", "server_error"]


class RequestRefusedError(ServingError):
    """A request that gets no answer.

    Args:
        message: what about it cannot be done.
        advice: what to ask instead.
        status: of HTTP.
        reason: OpenAI's ``code``, for programs.
        parameter: the request's field that is to blame, if it is one.
        headers: to send with the refusal.
    """

    def __init__(
        self,
        message: str,
        *,
        advice: str,
        status: int = 400,
        reason: str | None = None,
        parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.reason = reason
        self.parameter = parameter
        self.headers = dict(headers or {})

    @property
    def kind(self) -> Kind:
        """OpenAI's ``type``."""
        if self.status >= 500:
            return "server_error"
        return "authentication_error" if self.status == 401 else "invalid_request_error"

    def as_json(self) -> dict[str, object]:
        """Give the body of the response."""
        text = f"{self.message[:1].upper()}{self.message[1:]}. {self.advice}"
        return {"error": {"message": text, "type": self.kind, "param": self.parameter, "code": self.reason}}


def unavailable(message: str, *, advice: str, reason: str, seconds: int) -> RequestRefusedError:
    """Give a refusal of what may work later."""
    return RequestRefusedError(message, advice=advice, status=503, reason=reason, headers={"retry-after": str(seconds)})
