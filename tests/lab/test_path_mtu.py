"""Paths narrower than their ends: one router in the middle, for all combinations of the pair."""


import os

import pytest
from traffic import download, large_file, upload

from lab.topology import BALANCER, FAR_CLIENT, VIP, Lab


def test_a_narrow_link_behind_the_router_in_the_middle_makes_itself_known(any_kind: str) -> None:
    """The router that tells of its narrow link is the backends' as well: an error that goes on with
    its own address as source comes back to it, and is dropped there as a martian."""
    with Lab(backends=1, hub=True, path_mtu=1300, pair=any_kind) as lab:
        lab.start_all()
        expected = large_file(lab, 2_000_000)

        assert download(lab, timeout_s=20) == expected


def test_a_narrow_path_to_the_backends_takes_requests_longer_than_it(any_kind: str) -> None:
    """The balancer measures the path by itself: the router's errors go to the client, about an
    address that it has never heard of."""
    sent = os.urandom(200_000)
    with Lab(backends=1, hub=True, backend_mtu=1400, pair=any_kind) as lab:
        balancer, _ = lab.start_all()
        balancer.wait_for("takes packets of 1400")
        long_path = "/" + "x" * 3000

        answer = lab.client.curl(f"http://{VIP}{long_path}", "--fail", timeout_s=10)
        uploaded = upload(lab, "it", sent, "--max-time", "20")

        assert answer.split()[1] == long_path
        assert uploaded == [sent]


@pytest.mark.parametrize("kind", ["portable", "adopt", "splice"])
def test_a_narrow_path_of_which_nobody_says_anything_is_found_by_padded_checks(kind: str) -> None:
    """A router that sends no ICMP errors: long packets vanish there."""
    with Lab(backends=1, hub=True, backend_mtu=1400, pair=kind) as lab:
        lab.router.run(["iptables", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP"])
        backend = lab.backend1
        lab.start_nginx(backend)
        lab.start_bridge(backend)
        path = lab.directory / "balancer.toml"
        path.write_text(
            f'[[service]]\nvip = "{VIP}"\nport = 80\n'
            "[service.check]\ninterval = 0.3\ntimeout = 0.2\n"
            f'[[service.backend]]\nid = 1\naddress = "{backend.address}"\n')
        balancer = lab.start_balancer("--config", str(path), defaults=False)
        balancer.wait_for("longer than 1400 bytes vanish, and nobody says so", 30)
        sent = os.urandom(200_000)

        uploaded = upload(lab, "it", sent, "--max-time", "20")

        assert uploaded == [sent]
        assert balancer.metrics()['l3dsr_balancer_mss_bytes{service="192.168.33.10:80"}'] == 1360
        assert " is down" not in balancer.log()


@pytest.mark.parametrize("kind", ["portable", "adopt"])
def test_an_error_about_a_forwarded_packet_that_comes_by_the_balancer_reaches_the_client(
    kind: str,
) -> None:
    """The router's errors for clients go by the balancer, which cannot measure itself."""
    with Lab(backends=1, hub=True, backend_mtu=1400, pair=kind) as lab:
        lab.router.run(["iptables", "-A", "OUTPUT", "-p", "icmp", "-d", BALANCER, "-j", "DROP"])
        for interface in ("eth1", "eth3"):
            lab.router.run(["ip", "rule", "add", "iif", interface, "lookup", "100"])
        lab.router.run(["ip", "route", "add", f"{FAR_CLIENT}/32", "dev", "eth2", "table", "100"])
        lab.router.run(["ip", "route", "add", "192.168.35.0/24", "dev", "eth3", "table", "100"])
        lab.router.run(["ip", "route", "add", "192.168.33.0/24", "dev", "eth1", "table", "100"])
        lab.router.run(["ip", "route", "add", f"{FAR_CLIENT}/32", "via", BALANCER])
        balancer, _ = lab.start_all()
        long_path = "/" + "x" * 3000

        answer = lab.client.curl(f"http://{VIP}{long_path}", "--fail", timeout_s=20)
        learnt = lab.client.run(["ip", "route", "get", VIP])
        balancer.wait_for("takes packets of 1400 bytes")

        assert answer.split()[1] == long_path
        assert "mtu 1400" in learnt
        assert balancer.metrics()['l3dsr_balancer_mss_bytes{service="192.168.33.10:80"}'] == 1360
