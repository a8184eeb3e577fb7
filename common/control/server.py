"""HTTP on any number of sockets, in a thread of its own. Nothing here stands on the packet path.

Whoever reaches a socket may ask, so connections, their time and what they send are bounded: a
client that is slow, or many that are, take neither descriptors nor memory from the program, and
those that come fast do not take the processor either. Nothing of a request is logged.
"""

import asyncio
import gc
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from common.control import token
from common.control.api import Background
from common.control.forms import Asked, Content, Handler, Refused, Stream

if TYPE_CHECKING:
    from aiohttp import web

MAX_CONNECTIONS = 8  # of a socket; one more ends the oldest
MAX_TIME_S = 5.0  # from accept to end, of a connection
MAX_STREAMS = 4  # of a socket, beside these
MAX_OCTETS = 64 << 10  # that a connection may send
_PAUSE_S = 0.005  # between two connections
_LOOK_S = 0.5
_END_S = 2.0
# The engine has turned the collector off, and connections leave cycles behind.
_COLLECT_EVERY = 500  # connections
_COLLECT_SHARE = 1000  # it takes one part of so many of the time at most
log = logging.getLogger(__name__)
_silent = logging.getLogger(f"{__name__}.silent")  # for aiohttp: a client's faults are no news
_silent.disabled = True


class End(NamedTuple):
    """A listening socket, and what is answered there, by path."""

    listener: socket.socket
    gets: Mapping[str, Handler]
    posts: Mapping[str, Handler] = {}
    max_time_s: float = 0.0  # 0: MAX_TIME_S
    token: str = ""  # what orders need; empty: nothing


class Server:
    """Answers until it is closed."""

    def __init__(
        self, ends: Sequence[End], background: Sequence[Background] = ()
    ) -> None:
        """background: what goes on beside, and never ends by itself."""
        self._ends = ends
        self._background = background
        self._loop = asyncio.new_event_loop()
        self._closed = asyncio.Event()
        self._connections = 0
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more. The sockets are closed, unless something takes its time."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join(_END_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda _, context: log.debug("%s", context))
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            log.exception("nothing is answered any more at the control socket or for metrics")
        finally:
            for end in self._ends:
                end.listener.close()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        gates = [_Gate(end, self) for end in self._ends]
        tasks = [asyncio.ensure_future(each) for each in
                 (self._closed.wait(), self._tidy(), *(gate.run() for gate in gates),
                  *(begin() for begin in self._background))]
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for task in done:
            task.result()

    def count(self) -> None:
        """Another connection has been accepted."""
        self._connections += 1

    async def _tidy(self) -> None:
        """Free the cycles that connections have left, at a bounded share of the time."""
        gc.freeze()  # modules; only what is made from now on is looked at
        seen, next_s = 0, 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            if self._connections - seen >= _COLLECT_EVERY and now_s >= next_s:
                seen = self._connections
                gc.collect()
                ended_s = time.monotonic()
                next_s = ended_s + _COLLECT_SHARE * (ended_s - now_s)


class _Gate:
    """Accepts the connections of one socket, and ends those that are too many or too old."""

    def __init__(self, end: End, server: Server) -> None:
        from aiohttp import web  # here: the thread reads it while packets are handled already

        self._end = end
        self._server = server
        self._running = 0
        self._open: dict[asyncio.BaseTransport, float] = {}  # until when; the oldest first
        self._streams: set[asyncio.Transport] = set()
        self._http = web.Server(
            self._answer, access_log=None, logger=_silent, auto_decompress=False,
            max_line_size=4096, max_field_size=4096, lingering_time=0.0)

    async def run(self) -> None:
        """Until it is cancelled."""
        watch = asyncio.get_running_loop().create_task(self._watch())
        try:
            while True:
                await self._accept()
                await asyncio.sleep(_PAUSE_S)
        finally:
            watch.cancel()
            for transport in (*self._open, *self._streams):
                cast(asyncio.Transport, transport).abort()
            await self._http.shutdown(0)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = await loop.sock_accept(self._end.listener)
            while len(self._open) >= MAX_CONNECTIONS:
                self._abort(next(iter(self._open)))
            transport, _ = await loop.connect_accepted_socket(
                lambda: _Bounded(self._http(), self._open), connection)
        except OSError as error:  # no descriptors, or a client that is gone
            log.debug("accepting a connection: %s", error)
            await asyncio.sleep(_LOOK_S)
            return
        self._server.count()
        if not transport.is_closing():
            self._open[transport] = time.monotonic() + (self._end.max_time_s or MAX_TIME_S)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            for transport in [each for each, due_s in self._open.items() if due_s <= now_s]:
                self._abort(transport)

    def _abort(self, transport: asyncio.BaseTransport) -> None:
        self._open.pop(transport, None)
        cast(asyncio.Transport, transport).abort()

    async def _answer(self, request: "web.BaseRequest") -> "web.StreamResponse":
        """As aiohttp wants it. Nothing is raised: what is raised leaves cycles behind."""
        from aiohttp import web

        if self._running >= 2 * MAX_CONNECTIONS:  # of connections that have ended, too
            return web.Response(status=503, text="too much is asked for\n")
        self._running += 1
        try:
            found = await self._ask(request)
            if isinstance(found, Stream):
                return await self._go_on(request, found)
        finally:
            self._running -= 1
        return web.Response(body=found.octets, status=found.status, headers={
            "Content-Type": found.kind, "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff"})

    async def _go_on(
        self, request: "web.BaseRequest", stream: Stream
    ) -> "web.StreamResponse":
        """Answer until the client has gone, or takes nothing for too long."""
        from aiohttp import web

        transport = request.transport
        if transport is None or len(self._streams) >= MAX_STREAMS:
            return web.Response(status=503, text="too many listen\n")
        self._open.pop(transport, None)
        self._streams.add(transport)
        response = web.StreamResponse(headers={
            "Content-Type": stream.kind, "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff"})
        try:
            await response.prepare(request)
            async for chunk in stream.chunks:
                await asyncio.wait_for(response.write(chunk), MAX_TIME_S)
        except (OSError, TimeoutError):
            pass
        finally:
            await stream.chunks.aclose()
            self._streams.discard(transport)
            transport.abort()
        return response

    async def _ask(self, request: "web.BaseRequest") -> Content | Stream:
        try:
            query = dict(request.query)
            octets = await request.content.read()  # in any case: it is on its way
        except Exception:  # whatever aiohttp raises of it; it is the client's fault, so not logged
            return _error(400, "the question is not whole")
        posts = request.method == "POST"
        if not posts and request.method not in ("GET", "HEAD"):
            return _error(405, "GET, HEAD or POST is meant")
        table, other = self._end.gets, self._end.posts
        if posts:
            table, other = other, table
        handler = table.get(request.path)
        if handler is None:
            if request.path in other:
                return _error(405, f"{request.path} takes {'GET' if posts else 'POST'}")
            paths = " ".join(sorted({*self._end.gets, *self._end.posts}))
            return _error(404, f"there is no {request.path[:100]}; there are: {paths}")
        authorization = request.headers.get("Authorization", "")
        if posts and self._end.token and not token.is_right(self._end.token, authorization):
            return _error(401, "an order needs `Authorization: Bearer` and the token")
        try:
            answer = await handler(Asked(query, _object(octets) if posts else {}))
        except Refused as refused:
            return _error(refused.status, str(refused))
        except Exception:
            log.exception("%s failed", request.path)
            return _error(500, "a fault of the program's; its log has the details")
        return answer if isinstance(answer, (Content, Stream)) else _json(answer)


class _Bounded(asyncio.Protocol):
    """A connection's protocol, behind a count of its octets."""

    def __init__(self, inner: Any, open_ones: dict[asyncio.BaseTransport, float]) -> None:
        self._inner = inner
        self._open = open_ones
        self._octets = 0
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio.Protocol."""
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, octets: bytes) -> None:
        """As asyncio.Protocol."""
        self._octets += len(octets)
        if self._octets > MAX_OCTETS and self._transport:
            cast(asyncio.Transport, self._transport).abort()
        else:
            self._inner.data_received(octets)

    def eof_received(self) -> bool | None:
        """As asyncio.Protocol."""
        found: bool | None = self._inner.eof_received()
        return found

    def pause_writing(self) -> None:
        """As asyncio.Protocol."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """As asyncio.Protocol."""
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """As asyncio.Protocol."""
        if self._transport:
            self._open.pop(self._transport, None)
        self._inner.connection_lost(error)
        self._transport = None


def _object(octets: bytes) -> Mapping[str, Any]:
    """The JSON object of a body, which may be empty. Raises: Refused."""
    try:
        found = json.loads(octets) if octets else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "the body is no JSON object")
    return found


def _json(answer: object) -> Content:
    """Indented for people, and so made by Python's own code, which lets packets in between."""
    return Content(json.dumps(answer, indent=2).encode() + b"\n", "application/json")


def _error(status: int, words: str) -> Content:
    return _json({"error": words})._replace(status=status)
