"""Questions and answers, without a word of HTTP."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A question. body: the JSON object of a POST."""

    query: Mapping[str, str] = {}
    body: Mapping[str, Any] = {}

    @property
    def words(self) -> Mapping[str, Any]:
        """What it says, wherever it says that."""
        return {**self.query, **self.body}


class Content(NamedTuple):
    """An answer that is not JSON, or not the usual 200. kind: its Content-Type."""

    octets: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200


class Stream(NamedTuple):
    """An answer that goes on until its client has gone: server-sent events (HTML, 9.2)."""

    chunks: AsyncGenerator[bytes, None]
    kind: str = "text/event-stream"


class Refused(Exception):
    """What cannot be answered. status: HTTP's."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


Handler = Callable[[Asked], Awaitable[Any]]  # to Content or Stream, or to what JSON can say
