"""Whether there is to be a fast engine, where the kernel answers in unusual ways."""

import errno
from ipaddress import IPv4Address

import pytest

from balancer import config
from balancer.keys.request import KeySpec
from balancer.offload import instance
from common.cluster.cookie import Secrets


@pytest.mark.parametrize("where", ["devices.refusal", "Program", "Pins"])
def test_a_kernel_that_fails_to_answer_leaves_the_portable_engine(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fails(*_: object) -> str:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    vip = IPv4Address("192.0.2.1")
    service = config.Service(name="web", vip=vip, port=80, dscp=3, key=KeySpec.parse("source"),
                             backends=(config.Backend(1, vip + 1, 1),))
    configured = config.Config(services=(service,), interface="lo")
    monkeypatch.setattr("balancer.offload.instance.features.refusal", lambda *_: "")
    monkeypatch.setattr("balancer.offload.instance.devices.refusal", lambda _: "")
    monkeypatch.setattr("balancer.offload.instance.Pins", lambda _: None)
    monkeypatch.setattr(f"balancer.offload.instance.{where}", fails)

    program, reason = instance.prepare(configured, Secrets(bytes(16)))

    assert program is None
    assert "Cannot allocate memory" in reason
