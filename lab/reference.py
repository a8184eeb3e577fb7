"""The tables of settings and metrics in docs/operations.md, made of their declarations.

    python -m lab.reference      writes them anew, between their marks
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING

import balancer.config
import balancer.metrics
import common.metrics
import packetbridge.config
import packetbridge.metrics
from common.settings import shared
from common.settings.schema import Entry, Within, entries, settings_of
from lab.node import REPOSITORY

PAGE = REPOSITORY / "docs/operations.md"
_MODULES = {"both": shared, "balancer": balancer.config, "packetbridge": packetbridge.config}
_TABLE = re.compile(r"(<!-- settings: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_METRICS = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_OF_BOTH = common.metrics.METRICS
METRICS = {
    "both": _OF_BOTH,
    "balancer": tuple(each for each in balancer.metrics.METRICS if each not in _OF_BOTH),
    "packetbridge": tuple(each for each in packetbridge.metrics.METRICS if each not in _OF_BOTH),
}
_HEAD_OF_METRICS = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
_HEAD = ["| key | type | default | meaning |", "|---|---|---|---|"]
_SHARED = {entry.key for entry in settings_of(shared.Shared) if entry.default is not MISSING}


def main() -> int:
    """Write the tables anew. Returns: the exit code."""
    PAGE.write_text(written(PAGE.read_text()))
    return 0


def written(text: str) -> str:
    """The page with its tables as the declarations have them."""
    text = _METRICS.sub(lambda mark: mark[1] + metrics_table(mark[2]) + mark[3], text)
    return _TABLE.sub(lambda mark: mark[1] + table(mark[2], mark[3]) + mark[4], text)


def named_in(text: str) -> set[tuple[str, str]]:
    """Which tables the page has: program and dataclass."""
    return {(mark[2], mark[3]) for mark in _TABLE.finditer(text)}


def table(program: str, name: str) -> str:
    """The table of a dataclass, as Markdown."""
    shape = getattr(_MODULES[program], name)
    return "".join(f"{line}\n" for line in [*_HEAD, *_rows(shape, program != "both")])


def metrics_table(program: str) -> str:
    """The table of a program's metrics, or of those that both have, as Markdown."""
    rows = (
        f"| `{metric.name}{'_total' if metric.kind == 'counter' else ''}` | {metric.kind} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} | "
        f"{f'{metric.help}. {metric.more}'.rstrip()} |" for metric in METRICS[program])
    return "".join(f"{line}\n" for line in [*_HEAD_OF_METRICS, *rows])


def _rows(shape: type, of_program: bool) -> Iterator[str]:
    for entry in entries(shape):
        if isinstance(entry, Within):
            if entry.tables.help:
                yield _row(entry.tables.key, bool(entry.tables.metavar), "tables", "required",
                           f"{_sentence(entry.tables.help)} The flag is `--{entry.tables.key} "
                           f"{entry.tables.metavar}`; {_within(entry)}")
            continue
        if issubclass(shape, shared.Shared) and (entry.key in _SHARED) is of_program:
            continue
        setting = entry.setting
        has_flag = bool(setting.metavar) and not issubclass(shape, shared.Shared)
        yield _row(entry.key, has_flag, setting.kind or setting.read.kind, _default(entry),
                   f"{_sentence(setting.help)} {setting.more}".rstrip())


def _row(key: str, has_flag: bool, kind: str, default: str, meaning: str) -> str:
    return f"| `{key}`{' §' if has_flag else ''} | {kind} | {default} | {meaning} |"


def _sentence(help_text: str) -> str:
    return f"{help_text[0].upper()}{help_text[1:]}."


def _within(entry: Within) -> str:
    return "without `id` its place in the command line counts." if entry.name == "backends" else ""


def _default(entry: Entry) -> str:
    setting = entry.setting
    if entry.is_required:
        if setting.flag_default is not None:
            return f"required; flag: `{setting.flag_default}`"
        if setting.lab is not None:
            lab = setting.lab if isinstance(setting.lab, str) else setting.lab[0]
            return f"required; flag in the lab: `{lab}`"
        return "required"
    if setting.default:
        return setting.default
    return f"`{entry.shown_default}`" if entry.shown_default else "none"


if __name__ == "__main__":
    sys.exit(main())
