"""What a doctor says: complaints, the gravest first, each with its remedy."""

import json
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    """NOTE: it works, at some cost. WARNING: it works, for now. ERROR: clients hang or fail."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


class Complaint(NamedTuple):
    """A cause, in a sentence, and what to do about it.

    figures: what it is called by where figures in its sentence change all the time.
    """

    severity: Severity
    sentence: str
    remedy: str
    figures: str = ""

    @property
    def name(self) -> str:
        """What is the same while the cause is."""
        return self.figures or self.sentence


def is_well(complaints: Sequence[Complaint]) -> bool:
    """Whether there is nothing worse than a note."""
    return all(complaint.severity is Severity.NOTE for complaint in complaints)


def show(title: str, complaints: Sequence[Complaint], as_json: bool) -> int:
    """Print them. title: what was looked at. Returns: the exit code, 0 only if all is well."""
    ordered = sorted(dict.fromkeys(complaints), key=lambda complaint: -complaint.severity)
    well = is_well(ordered)
    if as_json:
        print(json.dumps({
            "ok": well, "looked_at": title,
            "complaints": [{"severity": each.severity.name.lower(), "sentence": each.sentence,
                            "remedy": each.remedy} for each in ordered],
        }, indent=2))
        return 0 if well else 1
    print(f"{title}: {'all is well' if well else 'not well'}")
    for each in ordered:
        print(f"{each.severity.name.lower()}: {each.sentence}\n    {each.remedy}")
    return 0 if well else 1
