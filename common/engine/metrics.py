"""The counters for Prometheus, where they are asked for. Nothing here stands on the packet path.

Whoever reaches the port may ask, so connections and their time are bounded: a client that is slow,
or many that are, take neither descriptors nor threads from the program.
"""

import logging
import socket
import threading
import time
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from common.engine.collector import Collector, Observed
from common.settings import ConfigError

MAX_CONNECTIONS = 8
MAX_TIME_S = 5.0  # from accept to end, of a connection
log = logging.getLogger(__name__)


def serve(program: str, observed: Observed, file: str, address: str, port: int) -> "Server":
    """Answer Prometheus on address:port, in a thread of its own.

    Raises: ConfigError, naming `file`.
    """
    registry = CollectorRegistry()
    registry.register(Collector(program, observed))
    try:
        server = Server((address, port))
    except OSError as error:
        remedy = f"an address and port of this host that are free ({error.strerror or error})"
        raise ConfigError(file, "metrics", f"{address}:{port}", remedy) from None
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


class Server(WSGIServer):
    """A thread for each connection; one more than MAX_CONNECTIONS ends the oldest."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Raises: OSError."""
        self._lock = threading.Lock()
        self._until_s: dict[socket.socket, float] = {}  # the oldest first
        self._threads = threading.BoundedSemaphore(2 * MAX_CONNECTIONS)
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """As HTTPServer, without asking the DNS for a name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        with self._lock:
            while len(self._until_s) >= MAX_CONNECTIONS:
                self._end(next(iter(self._until_s)))
            self._until_s[request] = time.monotonic() + MAX_TIME_S
        self._threads.acquire()  # those that were ended are over in a moment
        threading.Thread(target=self._answer, args=(request, client_address), daemon=True).start()

    def service_actions(self) -> None:
        """Twice a second: end what has had its time."""
        now_s = time.monotonic()
        with self._lock:
            for connection in [one for one, due_s in self._until_s.items() if due_s <= now_s]:
                self._end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone, or was too slow, is no news."""
        log.debug("metrics for %s: ended", client_address, exc_info=True)

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._until_s.pop(request, None)
            self.shutdown_request(request)
            self._threads.release()

    def _end(self, connection: socket.socket) -> None:
        """Let whoever reads from it, or writes to it, fail."""
        del self._until_s[connection]
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended


class Handler(WSGIRequestHandler):
    """One request of a connection; nothing is logged."""

    def log_message(self, format: str, *words: Any) -> None:
        """As BaseHTTPRequestHandler."""
