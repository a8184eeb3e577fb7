"""Logging to stderr, as text for people or JSON for programs."""

import json
import logging
import sys

_OURS = ("balancer", "common", "packetbridge")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One object a line."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up(level: str, style: str) -> None:
    """Send the log to stderr.

    level: debug, info, warning or error, of our own; of libraries, warnings at most. style: text or
    json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if style == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(ours, logging.WARNING), handlers=[handler], force=True)
    for package in _OURS:
        logging.getLogger(package).setLevel(ours)
