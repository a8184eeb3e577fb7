"""Words that several commands have for the same."""

from collections.abc import Mapping
from typing import Any


def found_by(check: Mapping[str, Any]) -> str:
    """What a check has found, and why, as far as the doctor knows that."""
    return "; ".join(filter(None, (check["says"] or "not checked yet", check["cause"])))
