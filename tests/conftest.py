"""What all tests share."""

import os
from pathlib import Path

import pytest

_LAB = Path(__file__).parent / "lab"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so, and are skipped without it."""
    if os.geteuid() == 0:
        return
    reason = pytest.mark.skip(reason="needs root and network namespaces: sudo lab/run test")
    for item in items:
        if item.get_closest_marker("root") or item.path.is_relative_to(_LAB):
            item.add_marker(reason)
