/* Splice: segments of established flows, translated between client and server.
 *
 * The portable engine replays the handshake and then writes the flow into `flows`; from then on
 * its segments are translated here, client → server at tc ingress, server → client at tc egress.
 * The portable engine gets all else: what opens, closes or does not fit a flow, and what has
 * unusual options. For that a server's packet is turned round and comes in once more.
 *
 * Twin: packetbridge/datapath.py
 */
#include "bridge.h"
#include "checksum.h"
#include "translate.h"

#define PLAUSIBLE_LEN (1 << 20)
#define HOST 0 /* PACKET_HOST: for this host, whatever the frame's address is */

/* What has been seen of the end of a flow. Source: packetbridge/flows.py */
enum { CLIENT_FIN = 1, SERVER_FIN = 2, BOTH_FINS = 3, CLIENT_FIN_ACKED = 4, SERVER_FIN_ACKED = 8 };

const volatile __u32 server_mark; /* of packets to servers, and of their answers */

/* Counted up by packetbridge/offload/fast_datapath.py, which so finds the flows that are idle. Any clock
 * of the kernel's would cost more.
 */
volatile __u32 current_round;

struct flow_key {
	__be32 client;
	__be32 server;
	__be16 client_port;
	__be16 server_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1000000);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Whether it can be no other connection's: without payload it opens none, with one its numbers
 * must fit the flow.
 */
static __always_inline bool is_of_flow(const struct segment *segment, const struct flow *flow)
{
	__u32 distance = segment->seq - flow->client_next + PLAUSIBLE_LEN;
	__u32 unacked_len = flow->server_next - flow->server_acked;

	if (!has_payload(segment))
		return true;
	return distance <= 2 * PLAUSIBLE_LEN && segment->ack - flow->server_acked <= unacked_len;
}

static __always_inline bool is_plain(const struct segment *segment)
{
	return (segment->flags & (SYN | FIN | RST | ACK)) == ACK;
}

/* Whether it is the first to say that the other side's FIN has arrived: the portable engine notes
 * that. While only one side has closed, a segment with payload does not count: many may say so at
 * once, and would be overtaken by those that come after it is noted.
 *
 * fin, acked: the other side's bits of `ending`, next: its next number.
 */
static __always_inline bool is_first_ack_of_fin(const struct segment *segment,
						const struct flow *flow, __u8 fin, __u8 acked,
						__u32 next)
{
	if ((flow->ending & (fin | acked)) != fin || segment->ack != next)
		return false;
	return !has_payload(segment) || (flow->ending & BOTH_FINS) == BOTH_FINS;
}

static __always_inline int on_client(struct __sk_buff *skb, const struct iphdr *ip,
				     const struct service *service)
{
	__u8 dscp = ip->tos >> 2;
	struct flow_key key = {.server = service->server, .server_port = service->server_port};
	struct segment segment;
	struct flow *flow;
	__u32 end;

	if (ip->ttl <= 1 || !read_segment(skb, ip, &segment) || !is_plain(&segment) ||
	    segment.dport != service->vip_port)
		return NEXT;
	key.client = segment.src;
	key.client_port = segment.sport;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->dscp != dscp || !is_of_flow(&segment, flow) ||
	    is_first_ack_of_fin(&segment, flow, SERVER_FIN, SERVER_FIN_ACKED, flow->server_next) ||
	    !to_server(skb, &segment, service, flow))
		return NEXT;
	end = segment.seq + segment.len - segment.payload_off;
	if (is_after(end, flow->client_next))
		flow->client_next = end;
	if (is_after(segment.ack, flow->server_acked))
		flow->server_acked = segment.ack;
	flow->seen_round = current_round;
	skb->mark = server_mark; /* so that a RST in answer is known for one of ours */
	count(REASON_TO_SERVER);
	return NEXT;
}

SEC("tc")
int on_ingress(struct __sk_buff *skb)
{
	const struct service *service;
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return NEXT;
	ip = pulled_ip_header(skb, HEADERS_LEN);
	service = ip ? service_of(ip) : NULL;
	if (service && ip->protocol == IPPROTO_TCP)
		return on_client(skb, ip, service);
	if (skb->mark == server_mark)
		/* a server's packet, turned round: its frame is addressed to somebody else */
		bpf_skb_change_type(skb, HOST);
	return NEXT;
}

SEC("tc")
int on_egress(struct __sk_buff *skb)
{
	struct segment segment;
	struct flow_key key = {};
	struct flow *flow;
	struct iphdr *ip;
	__u32 end;

	if (skb->mark != server_mark || skb->protocol != bpf_htons(ETH_P_IP))
		return NEXT;
	ip = pulled_ip_header(skb, HEADERS_LEN);
	if (!ip || ip->protocol != IPPROTO_TCP || !read_segment(skb, ip, &segment))
		return NEXT;
	key.client = segment.dst;
	key.server = segment.src;
	key.client_port = segment.dport;
	key.server_port = segment.sport;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || !is_plain(&segment) ||
	    is_first_ack_of_fin(&segment, flow, CLIENT_FIN, CLIENT_FIN_ACKED, flow->client_next) ||
	    !to_client(skb, &segment, flow))
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	end = segment.seq + segment.len - segment.payload_off + flow->seq_delta;
	if (is_after(end, flow->server_next))
		flow->server_next = end;
	flow->seen_round = current_round;
	count(REASON_TO_CLIENT);
	return NEXT;
}

char LICENSE[] SEC("license") = "GPL";
