"""`lab/run`: on this machine, and on a fresh Debian 13 that has nothing of what it needs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import debian
from lab.node import REPOSITORY

RUN = str(REPOSITORY / "lab/run")
COMMANDS = ("demo", "test", "up", "down", "shell", "bench")


def run(*words: str, **options: object) -> subprocess.CompletedProcess:
    """Run lab/run with an environment that has no virtual environment in it."""
    return subprocess.run([RUN, *words], capture_output=True, text=True, check=False,
                          cwd="/", timeout=300, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")

    assert done.returncode == 0
    assert f"usage: lab/run {command}" in done.stdout


@pytest.mark.parametrize("words", [[], ["frob"], ["demo", "--frob"]], ids=str)
def test_a_wrong_command_line_exits_2(words: list[str]) -> None:
    done = run(*words)

    assert done.returncode == 2
    assert "usage: lab/run" in done.stderr


@pytest.mark.root
def test_without_root_it_says_how() -> None:
    def become_nobody() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    done = run("demo", preexec_fn=become_nobody)

    assert done.returncode == 2
    assert done.stderr == "lab: this needs root: sudo lab/run demo\n"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("debootstrap"), reason="this system has no debootstrap")
def test_the_demo_holds_on_a_fresh_debian(tmp_path: Path) -> None:
    root = debian.Root(tmp_path)
    root.copy_project("/src")
    root.run(["sh", "-c", "rm -rf /var/lib/apt/lists/*"])

    first = root.run(["/src/lab/run", "demo"])
    second = root.run(["sh", "-c", "/src/lab/run demo --json 2>/dev/null"])

    assert first.returncode == 0, first.stdout
    assert "lab: installing " in first.stdout
    report = json.loads(second.stdout)
    assert report["held"]
    assert len(report["checks"]) >= 10
    shutil.rmtree(tmp_path, ignore_errors=True)
