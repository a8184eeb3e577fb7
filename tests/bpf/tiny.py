"""A small program with a bit of everything, and datagrams to see what it does to them."""

import socket

from lab.topology import BALANCER, Lab
from tests.lab.netns import received, udp_socket

FRAME = bytes(range(64))

TINY = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "common/bpf/include/share.h"

struct pair { __u32 left; __u16 right; __u16 padding; };
struct prefix { __u32 length; __be32 address; };
enum place { FIRST, SECOND, THIRD, PLACES };
struct counter { __u64 packets; char name[8]; };
SHARE_TYPE(place, enum place);

#define MAP(name, kind, key_type, value_type, count) \\
  struct { __uint(type, kind); __type(key, key_type); __type(value, value_type); \\
           __uint(max_entries, count); } name SEC(".maps")
MAP(table, BPF_MAP_TYPE_HASH, __u32, struct pair, 5000);
MAP(slots, BPF_MAP_TYPE_ARRAY, __u32, __u64, 4);
MAP(counts, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u32, 2);
MAP(named, BPF_MAP_TYPE_ARRAY, __u32, struct counter, PLACES);
MAP(seen, BPF_MAP_TYPE_PERCPU_HASH, __u32, __u32, 100);
struct { __uint(type, BPF_MAP_TYPE_LPM_TRIE); __type(key, struct prefix); __type(value, __u32);
         __uint(map_flags, BPF_F_NO_PREALLOC); __uint(max_entries, 100); } trie SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");

const volatile __u32 verdict = XDP_PASS;
const volatile __u8 name[4] = "none";
__u64 packets;

SEC("xdp") int count(struct xdp_md *context)
{
  __u32 zero = 0, *counter = bpf_map_lookup_elem(&counts, &zero);
  __u32 length = context->data_end - context->data;

  if (counter)
    *counter += 1;
  __sync_fetch_and_add(&packets, 1);
  bpf_ringbuf_output(&events, &length, sizeof(length), 0);
  return verdict;
}

SEC("xdp") int drop(struct xdp_md *context) { return XDP_DROP; }

SEC("xdp") int sign(struct xdp_md *context)
{
  __u8 *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;

  if (data + 4 > end)
    return XDP_DROP;
  for (int place = 0; place < 4; place++)
    data[place] = name[place];
  return XDP_TX;
}

SEC("tc") int mark(struct __sk_buff *skb)
{
  skb->mark += 1;
  return -1;
}

SEC("tc") int accept(struct __sk_buff *skb) { return 0; }

SEC("tc") int refuse(struct __sk_buff *skb) { return 2; }
char _license[] SEC("license") = "GPL";
"""


def arrives(lab: Lab, server: socket.socket, within_s: float = 5) -> bool:
    """Whether a datagram from the client comes to the balancer, now."""
    received(server)  # late ones of before
    with udp_socket(lab.node("client")) as client:
        client.sendto(b"hello", (BALANCER, 9))
    try:
        server.settimeout(within_s)
        return bool(server.recv(100))
    except TimeoutError:
        return False


def is_lost(lab: Lab, server: socket.socket) -> bool:
    """Whether none comes."""
    return not arrives(lab, server, within_s=0.3)
