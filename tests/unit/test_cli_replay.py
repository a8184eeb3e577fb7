"""Replays: captures in, verdicts and packets out, in the capture's own time."""

import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scapy.layers.dot11 import Dot11, RadioTap
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1Q, Ether, Loopback
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter

from balancer import cli as balancer_cli
from balancer import config as balancer_config
from common.capture import pcap, replay
from common.capture.pcap import Captured
from common.cluster import stamps
from common.verdict import PASS, Action, Event, Verdict, send
from packetbridge import cli as bridge_cli
from packetbridge import config as bridge_config

SECRET = "000102030405060708090a0b0c0d0e0f"
CLIENT, VIP = "192.168.33.1", "192.168.33.10"
BRIDGES = {"192.168.33.20", "192.168.33.21"}
START = 1_700_000_000
START_NS = START * 10**9
SERVER_ISN, CLIENT_ISN = 5000, 100


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This host's own configuration counts in no test."""
    for config in (balancer_config, bridge_config):
        monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")


# --- captures ---

PLAIN = IP(src=CLIENT, dst=VIP) / TCP(sport=4000, dport=80) / Raw(b"abc")


def one_frame(link: int, frame: bytes, cut: int = 0) -> bytes:
    """A capture of one frame, whose last `cut` octets were left out."""
    kept = frame[:len(frame) - cut]
    return (struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
            + struct.pack(">IIII", START, 0, len(kept), len(frame)) + kept)


@pytest.mark.parametrize("frame", [
    Ether() / PLAIN,
    Ether() / Dot1Q(vlan=7) / PLAIN,
    Ether(type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / PLAIN,
    CookedLinux() / PLAIN,
    CookedLinuxV2() / PLAIN,
    PLAIN,
], ids=["ethernet", "vlan", "two vlans", "cooked", "cooked 2", "raw"])
@pytest.mark.parametrize("writer", [PcapWriter, PcapNgWriter])
def test_a_packet_is_found_behind_its_link_header(
    frame: Packet, writer: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "in.pcap")
    frame.time = START + 0.25
    with writer(path) as file:
        file.write(frame)

    (captured,) = pcap.read(path)

    assert captured == Captured(START_NS + 250_000_000, bytes(PLAIN), 0)


def test_frames_without_ipv4_are_told_apart(tmp_path: Path) -> None:
    path = str(tmp_path / "in.pcap")
    with PcapWriter(path, linktype=1) as file:
        for frame in (Ether() / ARP(), Ether() / PLAIN, Ether(type=0x0800), Raw(b"\x01" * 13)):
            file.write(bytes(frame))

    packets = [captured.packet for captured in pcap.read(path)]

    assert packets == [None, bytes(PLAIN), b"", None]


def test_a_link_type_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    groups = ([Ether() / PLAIN, Ether() / ARP()], [Loopback() / PLAIN] * 2,
              [RadioTap() / Dot11() / Raw(b"\x45")])
    frames: list[Captured] = []
    for number, group in enumerate(groups):
        with PcapWriter(str(tmp_path / f"{number}.pcap")) as file:
            file.write(group)
        frames += pcap.read(tmp_path / f"{number}.pcap")
    summary = replay.Summary()

    packets = [captured.packet for captured in summary.watch(frames)]

    assert packets == [bytes(PLAIN), None, None, None, None]
    assert summary.notes() == [
        "2 frames have a link type that is not supported: BSD loopback (0)",
        "1 frames have a link type that is not supported: "
        "IEEE 802.11 with radiotap header (127)",
        "1 frames do not contain IPv4 and were skipped",
    ]
    assert summary.as_json()["unread_link_types"] == {
        "BSD loopback (0)": 2, "IEEE 802.11 with radiotap header (127)": 1}


def test_a_link_type_without_a_name_is_told_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(one_frame(147, bytes(PLAIN)))

    assert [captured.unread for captured in pcap.read(path)] == ["link type (147)"]


def test_a_check_sequence_at_the_end_of_frames_hides_no_link_type(tmp_path: Path) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(one_frame(0x24000001, bytes(Ether() / PLAIN) + bytes(4)))  # four octets of it

    (captured,) = pcap.read(path)

    assert captured.packet == bytes(PLAIN) + bytes(4)
    assert not captured.unread


@pytest.mark.parametrize("cut", [0, 100])
@pytest.mark.parametrize("link", [Ether(), None], ids=["ethernet", "raw"])
def test_a_length_that_is_left_to_the_senders_nic_is_the_frames(
    link: Packet | None, cut: int, tmp_path: Path
) -> None:
    whole = IP(src=CLIENT, dst=VIP) / TCP(sport=4000, dport=80, chksum=7) / Raw(b"x" * 20000)
    unfinished = whole.copy()
    unfinished.len, unfinished.chksum = 0, 0
    frame = bytes(link / unfinished if link else unfinished)
    path = tmp_path / "in.pcap"
    path.write_bytes(one_frame(1 if link else 101, frame, cut))

    (captured,) = pcap.read(path)

    assert captured.packet == bytes(whole)[:len(whole) - cut]
    assert captured.cut_len == cut


def test_a_length_of_nothing_readable_stays(tmp_path: Path) -> None:
    too_long = b"\x45" + bytes(65535)
    packets = [(START_NS, b"\x4f\0\0\0"), (START_NS, b"\x40\0\0\0" + bytes(20)),
               (START_NS, too_long)]
    path = tmp_path / "in.pcap"
    pcap.write(path, packets)

    read = [captured.packet for captured in pcap.read(path)]

    assert read == [packets[0][1], packets[1][1], too_long[:65535]]


def test_a_capture_tells_what_it_left_out_and_counts_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(
        struct.pack(">IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 20, 101)
        + struct.pack(">IIII", 10, 123_456_789, 20, 1500) + bytes(PLAIN)[:20]
    )

    (captured,) = pcap.read(path)

    assert captured == Captured(10_123_456_789, bytes(PLAIN)[:20], 1480)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    packets = [(START_NS, bytes(PLAIN)), (START_NS + 1_000, bytes(IP() / UDP()))]

    count = pcap.write(path, packets)

    assert count == 2
    assert [(captured.time_ns, captured.packet) for captured in pcap.read(path)] == packets


@pytest.mark.parametrize("content", [b"", b"\xa1\xb2", b"no capture at all, but long enough"])
def test_what_is_no_capture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(content)

    with pytest.raises(pcap.CaptureError):
        pcap.read(path)


# --- the clock of a replay ---


class Script:
    """A data path that notes when it is called, and sends at the ticks it is told to."""

    def __init__(self, *ticks: int) -> None:
        self.ticks: list[int] = []
        self.packets: list[int] = []
        self._sends = ticks

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        self.packets.append(now_ms)
        return send(Event.FORWARDED, packet, packet)

    def on_tick(self, now_ms: int) -> list[bytes]:
        self.ticks.append(now_ms)
        return [b"tick"] if now_ms in self._sends else []


def at(*times_ms: int) -> list[Captured]:
    return [Captured(time_ms * 1_000_000, b"packet") for time_ms in times_ms]


def test_timers_run_every_100_ms_of_the_capture() -> None:
    datapath = Script(1200)

    steps = list(replay.replay(datapath, at(1000, 1050, 1250, 1300), run_on_ms=150))

    assert datapath.packets == [1000, 1050, 1250, 1300]
    assert datapath.ticks == [1100, 1200, 1300, 1400]
    assert [(step.number, step.time_ns // 10**6, step.sent) for step in steps] == [
        (1, 1000, (b"packet", b"packet")), (2, 1050, (b"packet", b"packet")),
        (0, 1200, (b"tick",)),
        (3, 1250, (b"packet", b"packet")), (4, 1300, (b"packet", b"packet")),
    ]


def test_a_long_silence_is_cut_short() -> None:
    datapath = Script()
    day_ms = 86_400_000

    list(replay.replay(datapath, at(1000, 1000 + day_ms)))

    assert datapath.ticks[:2] == [1100, 1200]
    assert datapath.ticks[599:] == [61_000, 1000 + day_ms]


def test_time_never_runs_backwards() -> None:
    datapath = Script()

    list(replay.replay(datapath, at(5000, 4000, 5100)))

    assert datapath.packets == [5000, 5000, 5100]
    assert datapath.ticks == [5100]


def test_frames_without_ipv4_keep_their_number() -> None:
    packets = [Captured(START_NS, None), *at(1000)]

    (step,) = replay.replay(Script(), packets)

    assert step.number == 2


def test_a_summary_counts_what_became_of_the_packets() -> None:
    summary = replay.Summary()
    packets = [Captured(1, None), Captured(1, b"x", 9)]

    list(summary.watch(packets))
    summary.add(replay.Step(2, 1, b"x", PASS, ()))
    summary.add(replay.Step(0, 1, None, None, (b"y",)))

    assert summary.rows() == [("pass", "not_ours", 1)]
    assert summary.as_json() == {
        "verdicts": [{"verdict": "pass", "reason": "not_ours", "packets": 1}],
        "frames": 2, "not_ipv4": 1, "unread_link_types": {}, "cut_short": 1, "sent": 1,
        "sent_by_timers": 1,
    }
    assert len(summary.notes()) == 3


@pytest.mark.parametrize("packet, flow, flags, length", [
    (bytes(PLAIN), f"{CLIENT}:4000 > {VIP}:80", "S", 3),
    (bytes(IP(src=CLIENT, dst=VIP) / UDP()), f"{CLIENT} > {VIP}", "-", 8),
    (bytes(PLAIN)[:25], f"{CLIENT} > {VIP}", "-", 5),
    (b"\x45", "? > ?", "-", 0),
    (b"", "? > ?", "-", 0),
])
def test_any_octets_can_be_described(packet: bytes, flow: str, flags: str, length: int) -> None:
    step = replay.Step(1, 1, packet, Verdict(Action.DROP, Event.NOT_OURS), ())

    line = replay.describe(step, 0.5)

    assert (line["flow"], line["flags"], line["length"]) == (flow, flags, length)
    assert replay.LINE.format(**line)


# --- balancer replay ---


def conversation(request: bytes, sport: int, timestamps: bool) -> list[Packet]:
    """What a capture at some server shows of one request: its numbers are not ours."""
    def stamps(tsval: int, tsecr: int) -> list[tuple[str, Any]]:
        return [("Timestamp", (tsval, tsecr))] if timestamps else []

    client, server = IP(src=CLIENT, dst=VIP), IP(src=VIP, dst=CLIENT)
    ports = {"sport": sport, "dport": 80}
    back = {"sport": 80, "dport": sport}
    end = CLIENT_ISN + 1 + len(request)
    packets = [
        client / TCP(**ports, flags="S", seq=CLIENT_ISN,
                     options=[("MSS", 1460), ("SAckOK", b""), *stamps(10, 0)]),
        server / TCP(**back, flags="SA", seq=SERVER_ISN, ack=CLIENT_ISN + 1,
                     options=[("MSS", 1460), ("SAckOK", b""), *stamps(777_000, 10)]),
        client / TCP(**ports, flags="A", seq=CLIENT_ISN + 1, ack=SERVER_ISN + 1,
                     options=stamps(11, 777_000)),
        client / TCP(**ports, flags="PA", seq=CLIENT_ISN + 1, ack=SERVER_ISN + 1,
                     options=stamps(11, 777_000)) / Raw(request),
        server / TCP(**back, flags="PA", seq=SERVER_ISN + 1, ack=end,
                     options=stamps(777_050, 11)) / Raw(b"x" * 100),
        client / TCP(**ports, flags="A", seq=end, ack=SERVER_ISN + 1,
                     options=[("SAck", (SERVER_ISN + 51, SERVER_ISN + 101)),
                              *stamps(61, 777_050)]),
    ]
    for number, packet in enumerate(packets):
        packet.time = START + 0.01 * number
    return packets


def capture(path: Path, packets: list[Packet]) -> str:
    with PcapWriter(str(path), linktype=101) as file:
        for packet in packets:
            file.write(packet)
    return str(path)


@pytest.mark.parametrize("timestamps", [True, False])
def test_a_capture_of_another_server_is_balanced_as_if_it_were_ours(
    timestamps: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
    source = capture(tmp_path / "in.pcap", conversation(request, 4000, timestamps))
    target = tmp_path / "out.pcap"

    code = balancer_cli.main(["replay", "--secret", SECRET, source, str(target)])

    out = capsys.readouterr().out
    assert code == 0
    assert "send     handoff              1\n" in out
    assert "1 connections were answered by another server and have been renumbered\n" in out
    syn_ack, handoff, ack = (IP(captured.packet) for captured in pcap.read(target))
    cookie_isn = syn_ack[TCP].seq
    assert syn_ack[TCP].flags == "SA"
    assert handoff.dst in BRIDGES
    assert (handoff[TCP].seq, handoff[TCP].ack) == (CLIENT_ISN + 1, cookie_isn + 1)
    assert bytes(handoff[TCP].payload) == request
    assert ack[TCP].ack == cookie_isn + 1
    options = dict(ack[TCP].options)
    assert options["SAck"] == ((cookie_isn + 51) % 2**32, (cookie_isn + 101) % 2**32)
    if timestamps:
        named = dict(handoff[TCP].options)["Timestamp"][1]
        assert named >> 24 == {"192.168.33.20": 1, "192.168.33.21": 2}[handoff.dst]
        assert options["Timestamp"][1] == stamps.stripped(named) + 50


REQUEST = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
# Which packets of the conversation a capture has, in its order: SYN, SYN-ACK, ACK, request, reply,
# ACK of the reply.
ORDERS = {
    "a SYN repeated after the SYN-ACK": (0, 1, 0, 2, 3, 4, 5),
    "both repeated": (0, 1, 0, 1, 2, 3, 4, 5),
    "a SYN repeated before the SYN-ACK": (0, 0, 1, 2, 3, 4, 5),
    "a SYN repeated after the handshake": (0, 1, 2, 0, 3, 4, 5),
    "a SYN repeated after the request": (0, 1, 2, 3, 0, 4, 5),
    "the SYN-ACK before its SYN": (1, 0, 2, 3, 4, 5),
    "every packet twice": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5),
}


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("name", ORDERS)
def test_a_connection_is_followed_in_whatever_order_its_handshake_was_captured(
    name: str, timestamps: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = conversation(REQUEST, 4000, timestamps)
    chosen = [packets[index].copy() for index in ORDERS[name]]
    for number, packet in enumerate(chosen):
        packet.time = START + number  # a client repeats its SYN after a second
    source = capture(tmp_path / "in.pcap", chosen)
    target = tmp_path / "out.pcap"

    balancer_cli.main(["replay", "--secret", SECRET, source, str(target)])

    out = capsys.readouterr().out
    assert "1 connections were answered by another server" in out
    sent = [IP(captured.packet) for captured in pcap.read(target)]
    cookies = {packet[TCP].seq for packet in sent if packet[TCP].flags == "SA"}
    handoff, *_, ack = (packet for packet in sent if packet.dst in BRIDGES)
    assert bytes(handoff[TCP].payload) == REQUEST
    assert handoff[TCP].ack - 1 in cookies
    assert (ack[TCP].seq, ack[TCP].ack) == (CLIENT_ISN + 1 + len(REQUEST), handoff[TCP].ack)
    if timestamps:
        named, echoed = (dict(packet[TCP].options)["Timestamp"][1] for packet in (handoff, ack))
        assert (named >> 24, echoed) == ({"192.168.33.20": 1, "192.168.33.21": 2}[handoff.dst],
                                         stamps.stripped(named) + 50)


def test_ports_that_are_used_again_are_another_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = conversation(REQUEST, 4000, timestamps=False)
    second = [packet.copy() for packet in first]
    for packet in second:
        client, server = ("ack", "seq") if packet.src == VIP else ("seq", "ack")
        setattr(packet[TCP], client, getattr(packet[TCP], client) + 1_000_000)
        if packet[TCP].flags != "S":
            setattr(packet[TCP], server, getattr(packet[TCP], server) + 2_000_000)
    del second[5][TCP].options
    second[0], second[1] = second[1], second[0]
    for number, packet in enumerate(second):
        packet.time = START + 60 + number
    target = tmp_path / "out.pcap"

    balancer_cli.main(["replay", "--secret", SECRET,
                       capture(tmp_path / "in.pcap", [*first, *second]), str(target)])

    assert "2 connections were answered by another server" in capsys.readouterr().out
    sent = [IP(captured.packet)[TCP] for captured in pcap.read(target)]
    assert [packet.flags for packet in sent] == ["SA", "PA", "A"] * 2
    assert [packet.ack for packet in sent[4:]] == [sent[3].seq + 1] * 2


def test_a_request_that_its_senders_nic_was_to_cut_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = conversation(REQUEST[:-2] + b"X: " + b"x" * 9000 + b"\r\n\r\n", 4000, True)
    packets[3].len, packets[3].chksum = 0, 0
    source = capture(tmp_path / "in.pcap", packets)
    target = tmp_path / "out.pcap"

    balancer_cli.main(["replay", "--secret", SECRET, source, str(target)])

    assert "send     handoff              1\n" in capsys.readouterr().out
    handoff = IP(list(pcap.read(target))[1].packet)
    assert handoff.len == len(packets[3])
    assert handoff.chksum == IP(bytes(handoff.copy()))[IP].chksum


def test_a_capture_of_our_own_traffic_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = conversation(b"GET / HTTP/1.0\r\n\r\n", 4000, timestamps=False)
    first = tmp_path / "first.pcap"
    balancer_cli.main(["replay", "--secret", SECRET, capture(tmp_path / "in.pcap", packets),
                       str(first)])
    cookie_isn = IP(next(iter(pcap.read(first))).packet)[TCP].seq
    for packet in packets:
        if packet.src == VIP:
            packet[TCP].seq = (packet[TCP].seq + cookie_isn - SERVER_ISN) % 2**32
        elif "A" in packet[TCP].flags:
            packet[TCP].ack = (packet[TCP].ack + cookie_isn - SERVER_ISN) % 2**32
    del packets[-1][TCP].options
    second = tmp_path / "second.pcap"
    capsys.readouterr()

    balancer_cli.main(["replay", "--secret", SECRET, capture(tmp_path / "own.pcap", packets),
                       str(second)])

    assert "renumbered" not in capsys.readouterr().out
    sent = [captured.packet for captured in pcap.read(second)]
    assert sent[:2] == [captured.packet for captured in pcap.read(first)][:2]


def test_verbose_shows_every_packet_and_json_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = conversation(b"GET / HTTP/1.0\r\n\r\n", 4000, timestamps=True)
    source = capture(tmp_path / "in.pcap", packets)
    arguments = ["replay", "--secret", SECRET, "--verbose", source, str(tmp_path / "out.pcap")]

    balancer_cli.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    balancer_cli.main([*arguments, "--json"])
    answer = json.loads(capsys.readouterr().out)

    head, first, *_ = lines
    assert head.split() == ["packet", "seconds", "flow", "flags", "len", "says", "reason", "sent"]
    assert first.split() == ["1", "0.000000", f"{CLIENT}:4000", ">", f"{VIP}:80", "S", "0",
                             "send", "syn_answered", "1"]
    assert [line["reason"] for line in answer["packets"]] == [
        "syn_answered", "not_ours", "handshake_ack", "handoff", "not_ours", "forwarded"]
    assert answer["frames"] == 6
    assert answer["sent"] == 3


@pytest.mark.parametrize("arguments, what", [
    (["--secret", "00", "IN", "out"], "--secret = '…': expected 32 hex digits"),
    (["--secret-file", "none", "IN", "out"], "secret_file = 'none'"),
    (["--secret", SECRET, "none", "out"], "IN.pcap = 'none': expected a capture"),
    (["--secret", SECRET, "text", "out"], "IN.pcap = 'text': expected a capture"),
    (["--secret", SECRET, "IN", "IN"], "a file other than IN.pcap"),
    (["--secret", SECRET, "IN", "no/directory"], "a file that can be written"),
])
def test_a_replay_refuses_what_it_cannot_use(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    capture(tmp_path / "IN", [PLAIN])
    (tmp_path / "text").write_text("no capture")

    code = balancer_cli.main(["replay", *arguments])

    assert code == 2
    assert what in capsys.readouterr().err
    assert pcap.read("IN")


@pytest.mark.parametrize("main", [balancer_cli.main, bridge_cli.main])
def test_no_octets_stop_a_replay(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = Random(1)
    whole = [bytes(packet) for packet in conversation(b"GET / HTTP/1.0\r\n\r\n", 4000, True)]
    packets = [(START_NS, packet[:cut]) for packet in whole for cut in range(1, len(packet))]
    packets += [
        (START_NS, bytes(octet if random.random() < 0.95 else random.randrange(256)
                         for octet in random.choice(whole)))
        for _ in range(500)
    ]
    packets += [(START_NS, b"\x45" + os.urandom(random.randrange(80))) for _ in range(500)]
    source = tmp_path / "in.pcap"
    pcap.write(source, packets)

    code = main(["replay", "--secret", SECRET, "--verbose", str(source),
                 str(tmp_path / "out.pcap"), *(
                     ["--address", "192.168.33.20"] if main is bridge_cli.main else [])])

    assert code == 0
    assert "frames read" in capsys.readouterr().out


# --- packetbridge replay ---


def balanced(tmp_path: Path) -> tuple[str, str]:
    """A capture of what a balancer sends, and the one bridge that it is for."""
    source = capture(tmp_path / "client.pcap",
                     conversation(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", 4000, timestamps=True))
    target = tmp_path / "balanced.pcap"
    balancer_cli.main(["replay", "--secret", SECRET, source, str(target)])
    bridge = next(IP(captured.packet).dst for captured in pcap.read(target)
                  if IP(captured.packet).dst in BRIDGES)
    return str(target), bridge


def test_the_balancers_packets_open_a_connection_at_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, bridge = balanced(tmp_path)
    capsys.readouterr()

    code = bridge_cli.main(["replay", "--secret", SECRET, source, str(tmp_path / "out.pcap")])

    out = capsys.readouterr().out
    assert code == 0
    assert f"the bridge's address is {bridge}\n" in out
    assert "1 handshakes were answered by a stand-in" in out
    syn, request, ack = (IP(captured.packet) for captured in pcap.read(tmp_path / "out.pcap"))
    assert {packet.dst for packet in (syn, request, ack)} == {"192.168.33.30"}
    assert (syn[TCP].flags, syn[TCP].seq) == ("S", CLIENT_ISN)
    assert bytes(request[TCP].payload).startswith(b"GET /a ")
    assert ack[TCP].seq == CLIENT_ISN + 1 + len(request[TCP].payload)


def test_the_replies_in_a_backends_capture_pass_through_the_bridge_unchanged(
    tmp_path: Path
) -> None:
    source, _ = balanced(tmp_path)
    frames = list(pcap.read(source))
    request = IP(frames[1].packet)
    reply = IP(src=VIP, dst=CLIENT) / TCP(
        sport=80, dport=4000, flags="PA", seq=request[TCP].ack, window=500,
        ack=request[TCP].seq + len(request[TCP].payload),
        options=[("NOP", None), ("NOP", None), ("Timestamp", (2**24 + 9, 11))],
    ) / Raw(b"HTTP/1.1 200 OK\r\n\r\n")
    both = tmp_path / "backend.pcap"
    pcap.write(both, [(frame.time_ns, frame.packet or b"") for frame in frames[:2]]
               + [(frames[1].time_ns + 10**6, bytes(reply))])

    code = bridge_cli.main(["replay", "--secret", SECRET, str(both), str(tmp_path / "out.pcap")])

    sent = [captured.packet for captured in pcap.read(tmp_path / "out.pcap")]
    assert code == 0
    assert sent[-1] == bytes(reply)


def test_a_server_in_the_capture_needs_no_stand_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = balanced(tmp_path)
    frames = list(pcap.read(source))
    syn_ack = IP(src="192.168.33.30", dst=CLIENT) / TCP(
        sport=80, dport=4000, flags="SA", seq=9000, ack=CLIENT_ISN + 1,
        options=[("MSS", 1460), ("SAckOK", b""), ("Timestamp", (5, 11))],
    )
    both = tmp_path / "both.pcap"
    pcap.write(both, [(frames[1].time_ns, frames[1].packet or b""),
                      (frames[1].time_ns + 10**6, bytes(syn_ack))])
    capsys.readouterr()

    bridge_cli.main(["replay", "--secret", SECRET, str(both), str(tmp_path / "out.pcap")])

    out = capsys.readouterr().out
    assert "stand-in" not in out
    assert "send     opened          1\n" in out
    syn, request = (IP(captured.packet) for captured in pcap.read(tmp_path / "out.pcap"))
    assert (syn[TCP].flags, request[TCP].ack) == ("S", 9001)


def test_a_bridge_without_an_address_asks_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = capture(tmp_path / "in.pcap", [PLAIN])

    code = bridge_cli.main(["replay", "--secret", SECRET, source, str(tmp_path / "out.pcap")])

    assert code == 2
    assert "--address = None: expected the bridge's own address" in capsys.readouterr().err
