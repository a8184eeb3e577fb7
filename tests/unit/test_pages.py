"""Man pages and shell completion, as the package's build makes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from balancer import cli as balancer_cli
from common.settings import pages
from lab.node import REPOSITORY
from packetbridge import cli as bridge_cli

PARSERS = {"balancer": balancer_cli.make_parser, "packetbridge": bridge_cli.make_parser}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where setup.py has installed its data files."""
    directory = tmp_path_factory.mktemp("installed")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(directory / "lib"),
         "install_data", "--install-dir", str(directory)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


def commands_of(program: str) -> list[str]:
    (choices,) = (action.choices for action in PARSERS[program]()._actions
                  if isinstance(action.choices, dict))
    return list(choices)


@pytest.mark.parametrize("program", PARSERS)
def test_the_man_page_has_every_command_and_flag(program: str, installed: Path) -> None:
    text = (installed / pages.MAN / f"{program}.1").read_text().replace("\\-", "-")

    name, _, description = text.partition(".SH NAME\n")[2].partition("\n")[0].partition(" - ")
    assert name == program
    assert len(description) > 20
    assert f"\n.SH EXAMPLES\n.nf\n  sudo {program} " in text
    assert "\n[COMMAND] [FLAG ...]\n" in text
    for command in commands_of(program):
        assert f"'{program} {command}'" in text
    for action in PARSERS[program]()._actions:
        for flag in action.option_strings:
            assert flag in text or flag in ("-h", "--help")


@pytest.mark.parametrize("program", PARSERS)
@pytest.mark.parametrize("words, expected", [
    ("''", "every command"), ("ch", "check"), ("--engine ''", "auto portable fast"),
    ("check --log-f", "--log-format"), ("check --config /etc/host", "/etc/hostname"),
])
def test_bash_completes(program: str, words: str, expected: str, installed: Path) -> None:
    script = (f"source {installed / pages.BASH / program}; COMP_WORDS=({program} {words}); "
              "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=\"${COMP_WORDS[*]}\"; "
              f"_shtab_{program}; echo \"${{COMPREPLY[@]}}\"")

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    wanted = commands_of(program) if expected == "every command" else expected.split()
    assert set(wanted) <= set(done.stdout.split())


@pytest.mark.parametrize("program", PARSERS)
def test_zsh_has_every_command(program: str, installed: Path) -> None:
    text = (installed / pages.ZSH / f"_{program}").read_text()

    assert text.startswith(f"#compdef {program}\n")
    for command in commands_of(program):
        assert f'{command}:' in text


def test_documents_rules_and_dashboard_are_installed_too(installed: Path) -> None:
    for name in ("README.md", "docs/operations.md", "docs/alerts.yml", "docs/grafana/l3dsr.json"):
        assert (installed / "share/doc/l3dsr" / name).exists()
