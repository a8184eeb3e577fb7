"""Where the control socket is, and whose; and the token that orders need elsewhere."""

from pathlib import Path

import pytest

from common.control import place, token
from common.settings import ConfigError


def test_a_socket_that_was_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "test.sock"
    place.listen(path, "file", True).close()

    with place.listen(path, "file", True):
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(ConfigError, match="another process listens there"):
            place.listen(path, "file", True)


def test_nothing_but_a_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "test.sock"
    path.write_text("somebody's")

    with pytest.raises(ConfigError, match=r"file: control = '/x': expected false, .*no socket"):
        place.listen(path, "file", "/x")

    assert path.read_text() == "somebody's"


def test_a_directory_that_anybody_may_write_in_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(ConfigError, match="anybody may write in"):
        place.listen(tmp_path / "test.sock", "file", True)


def test_an_instance_is_known_by_program_queue_and_namespace(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.engine.netns.name", lambda: "")
    assert place.instance("balancer", 33, 33) == "balancer"
    assert place.instance("balancer", 35, 33) == "balancer-35"

    monkeypatch.setattr("common.engine.netns.name", lambda: "blue")
    assert place.socket_path(place.instance("balancer", 33, 33)) == Path(
        "/run/l3dsr/balancer@blue.sock")


@pytest.mark.parametrize("mode, content, why", [
    (0o644, "0123456789abcdef\n", "others may use it"), (0o600, "short\n", "16 letters or more"),
    (0o600, "two words of some length", "16 letters or more"), (0o600, "ÿ" * 20, "ascii"),
    (0, None, "No such file"), (0o600, "0123456789abcdef\n", "")])
def test_a_token_is_read_from_a_file_of_ones_own(
    tmp_path: Path, mode: int, content: str | None, why: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)

    if why:
        with pytest.raises(ConfigError, match=rf"file: token_file = .*{why}.*umask 077; openssl"):
            token.read("file", str(path))
    else:
        assert token.read("file", str(path)) == "0123456789abcdef"
