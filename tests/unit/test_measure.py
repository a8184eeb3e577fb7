"""Paths are measured on a real socket: what one answer says does not keep the next one unsent."""

import socket
import time

from balancer.measure import LEAST_EVERY_S, Measurement
from balancer.paths import UNKNOWN, Paths, Route
from common.engine import clock

ADDRESSES = [socket.inet_aton(f"127.0.0.{number}") for number in range(1, 6)]


def test_an_answer_that_comes_at_once_is_not_taken_for_a_failure_to_send() -> None:
    paths = Paths(ADDRESSES)
    paths.set_routes({address: Route(b"\x7f\0\0\1", 1500, UNKNOWN) for address in ADDRESSES})
    for address in ADDRESSES:
        paths.learn(address, 1400, clock.now_ms())
    measurement = Measurement(paths)

    measurement.on_deadline()  # nobody listens at any of them, which they say at once
    time.sleep(0.05)
    measurement.on_ready()

    assert [paths[address].mtu for address in ADDRESSES] == [1500] * len(ADDRESSES)


def test_that_a_path_is_narrow_is_measured_often_and_that_it_is_whole_once_a_minute() -> None:
    paths = Paths(ADDRESSES)
    paths.set_routes({address: Route(b"\x7f\0\0\1", 1500, UNKNOWN) for address in ADDRESSES})
    measurement = Measurement(paths)
    measurement.on_deadline()
    time.sleep(0.05)
    measurement.on_ready()
    for address in ADDRESSES:
        paths.learn(address, 1400, clock.now_ms())  # as by checks, which are of other packets

    measurement.on_deadline()
    time.sleep(0.05)
    measurement.on_ready()

    assert [paths[address].mtu for address in ADDRESSES] == [1400] * len(ADDRESSES)
    assert measurement.deadline_s is not None
    assert measurement.deadline_s < time.monotonic() + LEAST_EVERY_S
