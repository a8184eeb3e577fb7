"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a suite that fails does so again. HYPOTHESIS_PROFILE=default
# searches anew each time.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
_LAB = Path(__file__).parent / "lab"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much the differential tests generate, and which; and how long the long tests are."""
    group = parser.getgroup("differential tests (tests/bpf)")
    group.addoption("--seed", type=int, default=1, help="of what they generate (default 1)")
    group.addoption("--times", type=int, default=1, help="so many times as much (default 1)")
    group = parser.getgroup("fuzzing (tests/attacks/test_fuzz.py, tests/lab/test_pair_fuzz.py)")
    group.addoption("--fuzz", type=int, default=0,
                    help="so many packets for each program (default 4000)")
    group.addoption("--fuzz-s", type=float, default=3, help="seconds on the wire (default 3)")
    group = parser.getgroup("end-to-end tests (tests/lab)")
    group.addoption("--thorough", action="store_true",
                    help="long loads, transfers and series in their full length; without, each "
                         "has a short form of seconds")
    group.addoption("--restarts", type=int, default=0,
                    help="restarts under load for so many seconds (default 3, --thorough: 60)")
    parser.getgroup("terminal reporting").addoption(
        "--at-once", action="store_true", help="show each failure when it comes, too")


def pytest_configure(config: pytest.Config) -> None:
    """Failures at once, where they are asked for; by xdist's workers they come to be told here."""
    if config.getoption("at_once") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(config))


class AtOnce:
    """Shows failures when they come."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """By name, with the phase, and all that is known."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\nFAILED in its {report.when}: {report.nodeid}")
            terminal.write_line(report.longreprtext)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether long tests have their full length."""
    return bool(request.config.getoption("thorough"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so, and are skipped without it."""
    if os.geteuid() == 0:
        return
    reason = pytest.mark.skip(reason="needs root and network namespaces: sudo lab/run test")
    for item in items:
        if item.get_closest_marker("root") or item.path.is_relative_to(_LAB):
            item.add_marker(reason)
