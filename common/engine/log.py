"""Logging to stderr, as text for people or JSON for programs: one line each, and bounded.

Whatever makes a program log, packets can make it do so often. So of a kind no more than some lines
are written within some seconds; what is left out is counted, and said with the next one. A kind is
a place in the code.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

PERIOD_S = 10
MOST, MOST_OF_DEBUG = 100, 2000  # lines of a kind, in PERIOD_S
_OURS = ("balancer", "common", "packetbridge")
FIELDS = "l3dsr_fields"  # of a record


def fields(**values: Any) -> dict[str, Any]:
    """What a line in JSON has besides its message: `log.info(text, extra=fields(backend=2))`."""
    return {FIELDS: values}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's own name
        """On one line, whatever words have come into it; a traceback follows on others."""
        return " ".join(super().formatMessage(record).splitlines())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One object a line."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes no more than MOST lines of a kind within PERIOD_S.

    clock_s: a clock that never goes back.
    """

    def __init__(self, stream: TextIO, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock_s = clock_s
        self._since_s: dict[tuple[str, int], float] = {}
        self._counts: dict[tuple[str, int], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """As Handler; holds its lock."""
        kind, now_s = (record.pathname, record.lineno), self._clock_s()
        most = MOST_OF_DEBUG if record.levelno <= logging.DEBUG else MOST
        if now_s - self._since_s.get(kind, -PERIOD_S) >= PERIOD_S:
            left_out = self._counts.get(kind, 0) - most
            self._since_s[kind], self._counts[kind] = now_s, 0
            if left_out > 0:
                self._say(record, f"{left_out} lines like the next one were left out")
        self._counts[kind] += 1
        if self._counts[kind] <= most:
            super().emit(record)
        if self._counts[kind] == most:
            self._say(record, f"further lines like the last one are left out for {PERIOD_S} s")

    def _say(self, record: logging.LogRecord, text: str) -> None:
        super().emit(logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno,
                                       text, None, None))


def formatter(style: str) -> logging.Formatter:
    """style: text or json."""
    return _Json() if style == "json" else _Text()


def set_up(level: str, style: str) -> None:
    """Send the log to stderr.

    level: debug, info, warning or error, of our own; of libraries, warnings at most. style: text or
    json.
    """
    handler = BoundedHandler(sys.stderr)
    handler.setFormatter(formatter(style))
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(ours, logging.WARNING), handlers=[handler], force=True)
    for package in _OURS:
        logging.getLogger(package).setLevel(ours)
