"""What Python and C say of each other: each `Twin:` names a file, and what is in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bpf import build

_SUFFIXES = (".py", ".c", ".h")
_NAMED = re.compile(r"[\w./-]+\.(?:py|h|bpf\.c)(?::\w+(?:\.\w+)*)?")


def _sources() -> Iterator[Path]:
    for folder in ("balancer", "packetbridge", "common", "lab"):
        yield from sorted(path for path in (build.ROOT / folder).rglob("*")
                          if path.suffix in _SUFFIXES)


def twins_in(text: str) -> list[str]:
    """What a text calls twins, as `file` or `file:symbol`."""
    return [name for line in re.findall(r"\bTwin:(.*)", text) for name in _NAMED.findall(line)]


def symbols_of(path: Path) -> set[str]:
    """What a file defines: functions, classes, structs, enumerators, constants, `Class.method`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        return {*re.findall(r"\b(?:struct|enum|union)\s+(\w+)\s*\{", code),
                *re.findall(r"^\w[\w\s*]*?\b(\w+)\(", code, re.MULTILINE),
                *re.findall(r"^#define (\w+)", code, re.MULTILINE)}
    return set(_defined(ast.parse(text).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from _defined(node.body, f"{prefix}{node.name}.")
                yield from _defined(node.body, "")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for each in ast.walk(node):
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                    yield prefix + each.id


def faults_in(text: str) -> list[str]:
    """What a text calls twins that are not there."""
    faults = []
    for twin in twins_in(text):
        name, _, symbol = twin.partition(":")
        path = build.ROOT / name
        if not path.exists():
            faults.append(f"{name} does not exist")
        elif symbol and symbol not in symbols_of(path):
            faults.append(f"{name} has no {symbol}")
    return faults


def test_every_twin_exists() -> None:
    faults = [f"{path.relative_to(build.ROOT)}: {fault}" for path in _sources()
              for fault in faults_in(path.read_text(encoding="utf-8"))]

    assert faults == []


def test_a_twin_names_a_file_by_its_whole_path() -> None:
    for path in _sources():
        for line in re.findall(r"\bTwin:(.*)", path.read_text(encoding="utf-8")):
            assert _NAMED.search(line), f"{path.relative_to(build.ROOT)}: {line.strip()}"


@pytest.mark.parametrize("text, fault", [
    (" * Twin: common/bpf/include/nothing.h", "common/bpf/include/nothing.h does not exist"),
    ("Twin:   common/bpf/include/cookie.h:encode_offers",
     "common/bpf/include/cookie.h has no encode_offers"),
    ("/* Twin: common/cluster/cookie.py:Offer, common/cluster/cookie.py:Offers */",
     "common/cluster/cookie.py has no Offers"),
])
def test_a_twin_that_is_not_there_is_found(text: str, fault: str) -> None:
    assert faults_in(text) == [fault]


@pytest.mark.parametrize("twin", [
    "common/bpf/include/cookie.h:encode_offer", "common/bpf/include/cookie.h:secrets",
    "common/cluster/cookie.py:MSS_IPV4", "common/wire/tcp.py:Segment",
])
def test_a_twin_that_is_there_is_found(twin: str) -> None:
    assert faults_in(f"Twin: {twin}") == []


# --- constants ---


def test_c_has_pythons_constants() -> None:
    build.write_constants()

    for header, parts in build.CONSTANTS.items():
        text = (build.ROOT / header).read_text(encoding="utf-8")
        for module, prefix, names in parts:
            found = build.constants_of(build.ROOT / module)
            for name in names:
                value = found[name]
                shown = f"{{{', '.join(map(str, value))}}}" if isinstance(value, tuple) else value
                assert f"\n#define {prefix}{name} {shown}\n" in text


def test_c_defines_no_constant_of_pythons_a_second_time() -> None:
    made = {build.ROOT / header for header in build.CONSTANTS}
    for path in _sources():
        if path.suffix == ".py" or path in made:
            continue
        package = path.relative_to(build.ROOT).parts[0]
        shared = {prefix + name for header, parts in build.CONSTANTS.items()
                  if header.partition("/")[0] in ("common", package)
                  for _, prefix, names in parts for name in names}
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        own = set(re.findall(r"^#define (\w+)", text, re.MULTILINE))
        for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text):
            own |= set(re.findall(r"\b([A-Z]\w+)\b", body))

        assert own & shared == set(), path.relative_to(build.ROOT)


def test_what_is_made_of_constants_is_a_constant(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import re\nA, B = 1, 2\nC = (A << 4) - B\nD = re.compile('x')\nE: int = 3\n"
                      "F = (A, C)\ndef g(): return 1\n")

    assert build.constants_of(module) == {"A": 1, "B": 2, "C": 14, "F": (1, 14)}
