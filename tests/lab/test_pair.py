"""The whole job on real traffic: curl and wrk through the VIP to real nginx."""

import hashlib
import os
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.topology import VIP, Lab, wait_until

URL = f"http://{VIP}"
LARGE_LEN = 20_000_000


def _large_file(lab: Lab, name: str = "large", length: int = LARGE_LEN) -> str:
    """Put a random file where every nginx serves it, and return its digest."""
    content = os.urandom(length)
    (lab.files / name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _digest_of_download(lab: Lab, name: str = "large", *flags: str) -> str:
    target = lab.directory / f"downloaded-{name}-{os.urandom(4).hex()}"
    lab.client.curl(f"{URL}/files/{name}", "-o", str(target), *flags, timeout_s=120)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    target.unlink()
    return digest


def test_a_url_always_reaches_the_same_backend_and_urls_spread_over_both(pair):
    urls = [f"{URL}/object/{number}" for number in range(1000)]

    each_alone = ("-H", "Connection: close")  # a kept connection would keep its backend
    rounds = [pair.lab.client.curl(*urls, *each_alone).splitlines() for _ in range(2)]

    first, again = ([line.split()[:2] for line in answers] for answers in rounds)
    assert first == again
    shares = Counter(backend for backend, _ in first)
    assert set(shares) == {"backend1", "backend2"}
    assert min(shares.values()) > 400


def test_the_server_sees_the_clients_own_address(pair):
    answer = pair.lab.client.curl(f"{URL}/who")

    assert answer.split()[2].startswith("192.168.33.1:")


def test_a_download_arrives_octet_for_octet(pair):
    expected = _large_file(pair.lab, "gigabyte-tenth", 100_000_000)

    assert _digest_of_download(pair.lab, "gigabyte-tenth") == expected


def test_an_upload_arrives_octet_for_octet(pair):
    content = os.urandom(LARGE_LEN)
    source = pair.lab.directory / "upload"
    source.write_bytes(content)

    pair.lab.client.curl(f"{URL}/upload/it", "-T", str(source), timeout_s=120)

    uploaded = list(pair.lab.directory.glob("nginx-*/upload/it"))
    assert [path.read_bytes() == content for path in uploaded] == [True]


def test_half_close_keeps_the_reply_coming(pair):
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 80)); "
        "s.sendall(b'GET /half HTTP/1.0\\r\\n\\r\\n'); s.shutdown(socket.SHUT_WR); "
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )

    answer = pair.lab.client.run(["python3", "-c", script, VIP])

    assert "200 OK" in answer
    assert " /half " in answer


def test_a_request_sent_in_pieces_reaches_its_urls_backend(pair):
    whole = pair.lab.client.curl(f"{URL}/a/path/in/pieces").split()[0]
    script = (
        "import socket, sys, time; s = socket.create_connection((sys.argv[1], 80)); "
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "for piece in (b'GET /a/pa', b'th/in', b'/pieces HTT', b'P/1.0\\r\\n\\r\\n'):\n"
        "    s.sendall(piece); time.sleep(0.02)\n"
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )

    answer = pair.lab.client.run(["python3", "-c", script, VIP])

    assert answer.split("\n\n")[1].split()[0] == whole


@pytest.mark.parametrize("sysctls", [
    ["net.ipv4.tcp_timestamps=0"],
    ["net.ipv4.tcp_sack=0"],
    ["net.ipv4.tcp_window_scaling=0"],
    ["net.ipv4.tcp_timestamps=0", "net.ipv4.tcp_sack=0", "net.ipv4.tcp_window_scaling=0"],
], ids=["no timestamps", "no SACK", "no window scaling", "none of them"])
def test_a_client_without_some_options_is_served(sysctls):
    with Lab() as lab:
        lab.start_all()
        lab.client.run(["sysctl", "-qw", *sysctls])
        expected = _large_file(lab)

        assert _digest_of_download(lab) == expected


def test_a_client_with_a_small_mss_is_served():
    with Lab() as lab:
        lab.start_all()
        lab.client.run(["ip", "route", "add", f"{VIP}/32", "dev", "eth1", "advmss", "536"])
        expected = _large_file(lab)

        assert _digest_of_download(lab) == expected


def test_a_narrow_link_on_the_path_makes_itself_known_by_icmp():
    with Lab(path_mtu=1300) as lab:
        balancer, bridges = lab.start_all()
        expected = _large_file(lab)

        assert _digest_of_download(lab) == expected

        for program in (balancer, *bridges):
            program.stop()
        forwarded = [re.search(r"icmp_forwarded=(\d+)", p.log()) for p in (balancer, *bridges)]
        assert forwarded[0]
        assert any(forwarded[1:])


@pytest.mark.parametrize("leg", ["client", "balancer", "backend1"])
def test_loss_reordering_and_duplicates_cost_no_octet(leg):
    bad = {"loss": 0.03, "reorder": 0.02, "duplicate": 0.02, "seed": 7}
    with Lab(backends=1, impair={leg: bad}) as lab:
        lab.start_nginx(lab.backend1)
        lab.start_bridge(lab.backend1)
        lab.start_balancer()
        expected = _large_file(lab, length=2_000_000)

        digests = [_digest_of_download(lab) for _ in range(2)]

        assert digests == [expected, expected]


def test_tls_is_balanced_by_server_name():
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


def test_a_killed_balancer_is_replaced_during_a_download():
    with Lab() as lab:
        balancer, _ = lab.start_all()
        expected = _large_file(lab, length=60_000_000)
        with ThreadPoolExecutor(1) as pool:
            download = pool.submit(_digest_of_download, lab)
            wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
            balancer.kill()
            lab.start_balancer()

            assert download.result(120) == expected


def test_a_killed_bridge_leaves_no_client_hanging():
    with Lab(backends=1) as lab:
        lab.start_nginx(lab.backend1)
        bridge = lab.start_bridge(lab.backend1)
        lab.start_balancer()
        _large_file(lab, length=60_000_000)
        with ThreadPoolExecutor(1) as pool:
            download = pool.submit(
                lab.client.run, ["curl", "-sS", "-o", "/dev/null", "-w", "%{exitcode}",
                                 "--limit-rate", "20M", f"{URL}/files/large"],
                check=False, timeout_s=90,
            )
            wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
            bridge.kill()
            lab.start_bridge(lab.backend1)

            assert download.result(90).strip().endswith("56")  # reset by the peer

        assert "backend1" in lab.client.curl(f"{URL}/")


def test_a_refused_connection_is_reset_not_left_hanging():
    with Lab(backends=1) as lab:
        lab.start_bridge(lab.backend1)  # and no nginx
        lab.start_balancer()

        code = lab.client.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{exitcode}", "--max-time", "20", f"{URL}/"],
            check=False,
        )

        assert code == "56"


def test_thousands_of_short_connections_leave_both_tables_empty(tmp_path):
    config = tmp_path / "balancer.toml"
    with Lab(backends=1) as lab:
        config.write_text(
            f'interface = "eth1"\nsecret_file = "{lab.secret_file}"\n'
            'metrics = "127.0.0.1:9101"\n'
            '[timeouts]\nidle = 2\nhalf_closed = 2\nreset = 1\n'
            f'[[service]]\nvip = "{VIP}"\nport = 80\n'
            f'[[service.backend]]\naddress = "{lab.backend1.address}"\nid = 1\n'
        )
        lab.start_nginx(lab.backend1)
        bridge = lab.start_bridge(lab.backend1)
        balancer = lab.start_balancer("--config", str(config), defaults=False)

        report = lab.client.run(
            ["wrk", "-t1", "-c50", "-d5s", "-H", "Connection: close", f"{URL}/short"]
        )

        assert int(re.search(r"(\d+) requests in", report)[1]) > 1000
        wait_until(lambda: lab.balancer.metrics()["l3dsr_balancer_flows"] == 0, 60,
                   "the balancer's table is empty")
        wait_until(lambda: _flows_of(bridge) == 0, 60, "the bridge's table is empty")
        assert balancer.running


def _flows_of(bridge) -> int:
    """The bridge's own count of its flows, which it logs when asked."""
    os.kill(bridge.pid, signal.SIGUSR1)
    counts = re.findall(r" flows=(\d+)", bridge.log())
    return int(counts[-1]) if counts else -1
