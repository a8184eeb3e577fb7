"""What most stories of a flow are made of."""

from scapy.packet import Packet

from tests.golden.case import Case
from tests.golden.stacks import NOP, REQUEST, Client, to_bridge


def opens(case: Case, client: Client, backend_id: int = 1) -> None:
    """The client's request opens its flow."""
    request = client.segment("PA", payload=REQUEST)
    tsecr = client.handed(backend_id, 1) if client.timestamps else None
    case.sends("handoff", request, to_bridge(request, backend_id, tsecr=tsecr))


def syn(case: Case, client: Client) -> None:
    """Its SYN is answered."""
    answer = [("MSS", 1460), NOP, NOP, ("SAckOK", b""), NOP, ("WScale", 7)]
    case.sends("syn_answered", client.syn(answer), client.syn_ack(answer))


def forwards(case: Case, *packets: Packet, to: int = 1) -> None:
    """Each goes to the backend as it is."""
    for packet in packets:
        case.sends("forwarded", packet, to_bridge(packet, to))
