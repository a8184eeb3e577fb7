"""The benchmark's ClientHellos: a real TLS stack answers each of them."""

import ssl
import subprocess
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from balancer.keys import tls
from lab import hellos

BROWSERS = (hellos.chrome, hellos.safari, hellos.firefox)
NAME = b"w7.shop.example.net"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=x", "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("browser", BROWSERS)
def test_a_tls_stack_answers_a_browsers_hello(
    browser: object, seed: int, certificate: Path
) -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    context.sni_callback = lambda connection, name, _: names.append(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(browser(NAME, Random(seed)))

    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()

    answer = outgoing.read()
    assert names == [NAME.decode()]
    assert answer[0] == 0x16  # a handshake record: ServerHello
    assert answer[5] == 2
    assert server.selected_alpn_protocol() == "h2"


def test_hellos_take_two_segments_and_have_their_name_in_either() -> None:
    mixed = hellos.mix(500, Random(1))

    at_once = Counter(hello.is_named_at_once for hello in mixed)

    assert all(hellos.SEGMENT_LEN < len(hello.octets) < 2 * hellos.SEGMENT_LEN for hello in mixed)
    assert at_once[True] > at_once[False] > 100
    for hello in mixed:
        found = tls.server_name(hello.octets)
        assert found == (hello.octets[:hello.name_end][-len(found[0]):], None)
        assert (tls.server_name(hello.octets[:hellos.SEGMENT_LEN]) == found) \
            is hello.is_named_at_once


def test_two_hellos_are_never_the_same() -> None:
    assert len({hello.octets for hello in hellos.mix(500, Random(1))}) == 500
    assert hellos.mix(5, Random(3)) == hellos.mix(5, Random(3))
