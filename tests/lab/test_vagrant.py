"""The Vagrantfile and the units, as far as they can be judged without a hypervisor."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from common.settings.cli import BAD_CONFIGURATION
from lab.node import REPOSITORY
from lab.topology import BALANCER, VIP, bridge_address, server_address

PREFIX = "/opt/l3dsr"
UNITS = sorted((REPOSITORY / "lab/systemd").glob("*.service"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Vagrantfile alone, so that validating leaves nothing in the tree."""
    shutil.copy(REPOSITORY / "Vagrantfile", tmp_path)
    return tmp_path


@pytest.mark.skipif(not shutil.which("vagrant"), reason="this system has no package vagrant")
def test_the_vagrantfile_is_valid(checkout: Path) -> None:
    environment = os.environ | {"VAGRANT_HOME": str(checkout / "home")}

    done = subprocess.run(["vagrant", "validate", "--ignore-provider"], cwd=checkout, text=True,
                          env=environment, capture_output=True, check=False, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    secret = checkout / ".vagrant/l3dsr-secret"
    assert re.fullmatch(r"[0-9a-f]{32}\n", secret.read_text())
    assert secret.stat().st_mode & 0o777 == 0o600


def test_the_vagrantfile_has_the_addresses_of_the_lab() -> None:
    text = (REPOSITORY / "Vagrantfile").read_text()

    addresses = set(re.findall(r'"(192\.168\.33\.\d+)"', text))

    assert addresses == {
        VIP, BALANCER, *map(bridge_address, (1, 2)), *map(server_address, (1, 2))
    }


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="this system has no systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text().replace("@INTERFACE@", "eth1").replace("@ADDRESS@", "192.168.33.30")
    # The programs are not installed here; what they are called is not what this is about.
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"=/usr/local/bin/\S+", "=/bin/true", text))

    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], text=True,
                          capture_output=True, check=False)

    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert complaints == []


DAEMONS = [unit for unit in UNITS if "Type=notify" in unit.read_text()]


@pytest.mark.parametrize("unit", DAEMONS, ids=lambda unit: unit.name)
def test_a_configuration_that_cannot_be_used_is_not_tried_again(unit: Path) -> None:
    text = unit.read_text()

    assert f"RestartPreventExitStatus={BAD_CONFIGURATION}\n" in text
    assert "Restart=on-failure\n" in text


@pytest.mark.parametrize("unit", DAEMONS, ids=lambda unit: unit.name)
def test_systemd_watches_the_program(unit: Path) -> None:
    assert re.search(r"^WatchdogSec=\d+$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", DAEMONS, ids=lambda unit: unit.name)
def test_the_units_documentation_is_what_an_installation_makes(unit: Path) -> None:
    """The wheel's data files end up in the environment that README.md and common.sh make."""
    pages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    installed = {
        f"{PREFIX}/{place}/{path.name}"
        for place, globs in pages["tool"]["setuptools"]["data-files"].items()
        for pattern in globs for path in REPOSITORY.glob(pattern)
    }

    (named,) = re.findall(r"^Documentation=file:(\S+)$", unit.read_text(), re.MULTILINE)

    assert named in installed
    assert f"python3 -m venv {PREFIX} " in (REPOSITORY / "README.md").read_text()
    assert f"prefix={PREFIX}\n" in (REPOSITORY / "lab/provision/common.sh").read_text()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="this system has no shellcheck")
def test_the_scripts_are_clean() -> None:
    scripts = [REPOSITORY / "lab/run", REPOSITORY / ".ci/run",
               *sorted((REPOSITORY / "lab/provision").glob("*.sh"))]

    done = subprocess.run(["shellcheck", "-x", *map(str, scripts)], cwd=REPOSITORY, text=True,
                          capture_output=True, check=False)

    assert done.stdout == ""
