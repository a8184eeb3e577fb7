"""The whole job on real traffic, through the VIP to real nginx.

Much of it is in test_pair_traffic.py; bad wires and poor stacks in test_pair_wires.py; how
connections end, and how programs do, in test_pair_endings.py and test_pair_takeover.py; floods
and forgeries in test_pair_attacks.py.
"""

import re
import subprocess
import sys

import pytest
from traffic import (
    URL,
    Pair,
    backends_of,
    connect,
    download,
    large_file,
    request,
    segments_sent,
    send_alone,
    until_end,
)

from lab.node import READY_S, wait_until
from lab.topology import VIP, Lab


def test_the_server_sees_the_clients_own_address(pair: Pair) -> None:
    answer = pair.lab.client.curl(f"{URL}/who")

    assert answer.split()[2].startswith("192.168.33.1:")


@pytest.mark.parametrize("head_len", [100, 1400, 3000, 9000])
def test_a_request_in_several_segments_reaches_its_urls_backend(pair: Pair, head_len: int) -> None:
    paths = [f"/{number}/".ljust(head_len - 60, "x") for number in range(4)]
    heads = {path: request(path, "Connection: close") for path in paths}
    whole = backends_of(pair.lab, paths)

    answers = {}
    for path, head in heads.items():
        with connect(pair.lab.client) as client:
            for piece in (head[:5], head[5:-30], head[-30:-2], head[-2:]):
                send_alone(client, piece)
            answers[path] = until_end(client).partition(b"\r\n\r\n")[2].decode().split()
            assert segments_sent(client) >= 4

    assert {path: answer[:2] for path, answer in answers.items()} == {
        path: [whole[path], path] for path in paths
    }


def test_a_narrow_link_on_the_path_makes_itself_known_by_icmp() -> None:
    with Lab(path_mtu=1300) as lab:
        balancer, bridges = lab.start_all()
        expected = large_file(lab, 20_000_000)

        assert download(lab) == expected

        for program in (balancer, *bridges):
            program.stop()
        forwarded = [re.search(r"icmp_forwarded=(\d+)", p.log()) for p in (balancer, *bridges)]
        assert forwarded[0]
        assert any(forwarded[1:])


_UPLOADER = """
import socket, sys
content = sys.stdin.buffer.read(int(sys.argv[2]))
head = f"PUT /upload/it HTTP/1.1\\r\\nHost: it\\r\\nContent-Length: {len(content)}\\r\\n\\r\\n"
with socket.create_connection((sys.argv[1], 80), 30) as connection:
    connection.sendall(head.encode() + content[:1000])
    print("begun", flush=True)
    sys.stdin.buffer.readline()
    connection.sendall(content[1000:])
    print(connection.recv(4096).split()[1].decode(), flush=True)
"""


def test_a_link_to_the_backend_that_becomes_narrow_makes_itself_known_to_the_client() -> None:
    sent = bytes(range(256)) * 10_000
    with Lab(backends=1) as lab:
        balancer, _ = lab.start_all()
        client = lab.client.popen([sys.executable, "-c", _UPLOADER, VIP, str(len(sent))],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        client.stdin.write(sent)
        client.stdin.flush()
        begun = client.stdout.readline()
        lab.balancer.run(["ip", "route", "add", f"{lab.backend1.address}/32", "dev", "eth1",
                          "mtu", "lock", "1300"])
        wait_until(lambda: 1260 in [value for name, value in balancer.metrics().items()
                                    if name.startswith("l3dsr_balancer_mss_bytes{")],
                   READY_S, "the balancer has seen it")
        rest, _ = client.communicate(b"\n", timeout=60)
        uploaded = [path.read_bytes() for path in lab.directory.glob("nginx-*/upload/it")]
        learnt = lab.client.run(["ip", "route", "get", VIP])

    assert (begun, rest) == (b"begun\n", b"201\n")
    assert uploaded == [sent]
    assert "mtu 1300" in learnt


def test_tls_is_balanced_by_server_name() -> None:
    with Lab() as lab:
        for backend in lab.backends:
            lab.start_nginx(backend, tls=True)
            lab.start_bridge(
                backend, "--vip", f"3={VIP}:443", "--server", f"{backend.server}:443",
                defaults=False,
            )
        lab.start_balancer("--port", "443", "--key", "tls.sni")

        def ask(name: str) -> str:
            return lab.client.curl(
                f"https://{name}/", "-k", "--resolve", f"{name}:443:{VIP}"
            )

        answers = {name: {ask(name).split()[0] for _ in range(2)}
                   for name in (f"site{number}.example" for number in range(12))}

    assert all(len(backends) == 1 for backends in answers.values())
    assert set().union(*answers.values()) == {"backend1", "backend2"}
