"""The kernels of Debian 12 and 13, booted: what is marked `kernels` holds there as well.

`lab/run test --kernel 6.1` runs all of it.
"""

import sys

import pytest

from common.bpf import build
from lab import kernel

pytestmark = [
    pytest.mark.root, pytest.mark.slow,
    pytest.mark.skipif(kernel.missing() is not None, reason=str(kernel.missing())),
]


@pytest.mark.parametrize("version", kernel.SUITES)
def test_the_programs_hold_on_other_kernels(
    version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    booted = kernel.fetch(version)
    build.compile_all()

    code = kernel.boot(booted, [
        sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "kernels",
        "tests/golden", "tests/bpf",
    ], timeout_s=2400)

    assert code == 0, capfd.readouterr().out


def test_a_machine_tells_its_kernel_and_the_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    booted = kernel.fetch("6.1")

    code = kernel.boot(booted, ["sh", "-c", "uname -r; exit 7"], timeout_s=300)

    assert code == 7
    assert booted.release in capfd.readouterr().out.split()


def test_a_machine_that_does_not_answer_is_an_error() -> None:
    booted = kernel.fetch("6.1")

    with pytest.raises(kernel.KernelError, match="ended without an answer"):
        kernel.boot(booted, ["sleep", "600"], timeout_s=1)


def test_a_kernel_that_is_not_known_is_refused() -> None:
    with pytest.raises(kernel.KernelError, match=r"no kernel '5\.4'; there are 6\.1, 6\.12"):
        kernel.fetch("5.4")
