"""What the benchmark says of attacks."""

import pytest

from lab import attacks, bench
from lab.floods import ATTACKS, NONE

ATTACK = next(attack for attack in ATTACKS if attack != NONE)


def figures(kept: float, new: float, long: float, **more: float) -> dict[str, float]:
    return {"kept": kept, "new": new, "long": long, "failed": 0.0, "attack/s": 0.0} | more


def test_what_is_left_is_told_beside_a_quiet_hour_and_beside_the_attack_aside() -> None:
    lines = list(attacks.table({"direct": {
        NONE.name: figures(1000, 500, 200),
        ATTACK.name: figures(800, 250, 50, failed=3.0, **{"attack/s": 9000.0}),
        attacks.aside(ATTACK): figures(800, 500, 100),
    }}))

    quiet, left, _, _, beside = lines[1:]
    assert quiet.endswith("100% / 100% / 100% (0 k/s)")
    assert left.startswith(ATTACK.name)
    assert left.endswith("80% / 50% / 25% (9 k/s, 3 failed)")
    assert beside.startswith(ATTACK.name)
    assert beside.endswith("100% / 50% / 50%")


def test_rows_and_contenders_can_be_chosen(monkeypatch, tmp_path, capsys) -> None:
    asked = []
    monkeypatch.setattr(attacks, "measure", lambda *given: asked.append(given) or {})
    monkeypatch.setattr(attacks, "table", lambda _: iter(["a table"]))

    bench.main(["--attacks", "--rounds", "1", "--row", "odd", "--row", "never",
                "--contender", "fast, adopt", "--output", str(tmp_path / "out.json")])

    assert asked[0][3:] == (["odd", "never"], ["fast, adopt"])
    assert capsys.readouterr().out == "a table\n"


def test_a_contender_that_is_none_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--attacks", "--contender", "varnish"])

    assert "'fast, adopt'" in capsys.readouterr().err
