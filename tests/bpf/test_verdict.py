"""One list of reasons in Python and C."""

import re
from pathlib import Path

from common.verdict import DropReason, Event

HEADER = Path(__file__).parents[2] / "common" / "bpf" / "include" / "verdict.h"


def test_reasons_are_numbered_alike() -> None:
    names = re.findall(r"^\tREASON_(\w+),$", HEADER.read_text(), re.MULTILINE)

    assert names == [reason.name for reason in (*Event, *DropReason)]
