"""The balancer's page, in a real browser: live, and for every reader."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from traffic import ALONE, wrk

from lab import browser
from lab.browser import Browser
from lab.node import METRICS_PORT
from lab.topology import Lab, program

pytestmark = pytest.mark.skipif(
    browser.program() is None,
    reason="no Chromium (Debian: chromium-headless-shell), which shows the page")
PAGE = f"http://127.0.0.1:{METRICS_PORT}/"
SAYS = "document.body.innerText.includes({!r})"
TOKEN = "0123456789abcdef"
ROWS = "document.querySelectorAll('#backends tbody tr')"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(pair="adopt") as made:
        for backend in made.backends:
            made.start_nginx(backend)
        made.start_bridges()
        token = made.directory / "token"
        token.touch(mode=0o600)
        token.write_text(TOKEN)
        made.start_balancer("--token-file", str(token))
        yield made


@pytest.fixture(scope="module")
def page(lab: Lab) -> Iterator[Browser]:
    with Browser(lab.balancer.command([])) as made:
        made.go(PAGE)
        made.wait(f"{ROWS}.length === 2")
        yield made


def test_it_shows_services_and_backends_as_they_are(lab: Lab, page: Browser) -> None:
    wrk(lab.client, "-c4", "-d1s", *ALONE)

    page.wait("[...document.querySelectorAll('#reasons tbody tr')]"
              ".some(row => row.innerText.startsWith('handoff'))")

    assert "192.168.33.10:80" in page.ask("document.querySelector('#services tbody').innerText")
    states = page.ask(f"[...{ROWS}].map(row => row.cells[3].innerText)")
    assert states == ["up", "up"]
    assert page.complaints == []


def test_what_changes_is_seen_without_loading_it_again(lab: Lab, page: Browser) -> None:
    lab.balancer.run([*program("balancer"), "drain", "2"])
    page.wait(f"{state_of(2)} === 'draining'")

    assert page.ask("document.querySelector('#news').innerText") == (
        page.ask("`Backend 2 of ${" + ROWS + "[1].cells[0].innerText} is draining`"))


def test_orders_need_the_token_and_are_carried_out(page: Browser) -> None:
    assert page.ask("getComputedStyle(document.querySelector('td.orders')).display") == "none"

    for token, state in (("another", "draining"), (TOKEN, "up")):
        page.ask(f"document.querySelector('#token').value = '{token}'")
        page.ask("document.querySelector('#operate button').click()")
        page.ask("document.querySelector('#said').textContent = ''")
        page.ask("document.querySelector(\"[aria-label^='Enable backend 2']\").click()")
        page.wait("document.querySelector('#said').textContent !== ''")
        page.wait(f"{state_of(2)} === '{state}'")

    assert page.ask("document.querySelector('#said').textContent").endswith("enable is done.")


def test_where_there_is_no_token_nobody_is_asked_for_one(lab: Lab, page: Browser) -> None:
    form = "getComputedStyle(document.querySelector('#operate')).display"
    assert page.ask(form) == "flex"

    lab.balancer.processes[-1].stop()
    lab.start_balancer()
    page.wait(f"{form} === 'none'")

    lab.balancer.processes[-1].stop()
    lab.start_balancer("--token-file", str(lab.directory / "token"))
    page.wait(f"{form} === 'flex'")


def test_a_keyboard_is_enough(page: Browser) -> None:
    page.ask("document.querySelector('#backends [data-column=id] button').focus()")

    page.press("Enter")
    first = page.ask(f"[...{ROWS}].map(row => row.cells[1].innerText)")
    page.press("Enter")

    assert page.ask(f"[...{ROWS}].map(row => row.cells[1].innerText)") == first[::-1]
    assert page.ask("document.querySelector('#backends [data-column=id]').ariaSort") == "ascending"
    page.press("Tab")
    assert page.ask("document.activeElement.innerText") == "Address"


def test_a_screen_reader_hears_what_the_eye_sees(page: Browser) -> None:
    names = page.names()

    for name in ("heading balancer", "table Backends", "columnheader State", "region Services"):
        assert name in names
    assert any(re.match(r"(image|img) Flows: .* now, ", name) for name in names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_cut_off_and_all_can_be_read(
    page: Browser, scheme: str, width: int, tmp_path: Path
) -> None:
    page.look(scheme=scheme, width=width)

    assert page.ask("document.documentElement.scrollWidth <= window.innerWidth")
    ground, ink = (page.ask(f"getComputedStyle(document.body).{each}")
                   for each in ("backgroundColor", "color"))
    assert _contrast(ground, ink) >= 7  # WCAG 2.2 §1.4.6
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_it_needs_nothing_from_elsewhere_and_takes_nothing(lab: Lab, page: Browser) -> None:
    loaded = page.ask("performance.getEntriesByType('resource').map(entry => entry.name)")

    assert {name for name in loaded if not name.startswith(PAGE)} <= {"data:,"}
    code = lab.balancer.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}",
                             PAGE + "api/v1/drain"])
    assert code == "401"


def state_of(number: int) -> str:
    """What the page shows as a backend's state, as an expression."""
    return f"[...{ROWS}].find(row => row.cells[1].innerText === '{number}').cells[3].innerText"


def _contrast(*colours: str) -> float:
    """Source: WCAG 2.2, "contrast ratio"."""
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
                            for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted(map(luminance, colours))
    return (lighter + 0.05) / (darker + 0.05)
