/* The same segment on the other side: addresses, ports, numbers, clocks and windows.
 *
 * Whatever has options in another layout than common stacks send is left to the portable engine.
 *
 * Source: RFC 9293 §3.1; RFC 7323 §2.3, §3.2; RFC 2018 §3; RFC 1624 §3, eqn. 3.
 * Twin:   packetbridge/modes/translate.py
 */
#pragma once

#include "bridge.h"
#include "checksum.h"

#include "common/bpf/include/share.h"
#include "common/bpf/include/stamps.h"

#define MAX_EDGES 8 /* of four blocks */

/* Who looks after a flow. OPEN: the programs translate it. REPLAYING: they have sent the server its
 * SYN, and wait for the answer. PORTABLE: all of its packets are the portable engine's.
 */
enum flow_state { OPEN, REPLAYING, PORTABLE };

SHARE_TYPE(flow_state, enum flow_state);

/* The flow's two sides; written here and by packetbridge/offload/splice.py.
 *
 * The first group is as in packetbridge/flows.py:BridgeFlow, and stays; while the handshake is being
 * replayed, ts_delta is the handoff's TSecr without its MAC. The second is what has been seen, in
 * the client's numbers, and in which second. Of `ending`, each direction has its own half: two
 * processors may be at it at once.
 */
struct flow {
	__u32 seq_delta;
	__u32 ts_delta;
	__u32 client_isn;
	__u32 cookie_isn;
	__be32 vip;
	__be16 vip_port;
	__u8 dscp;
	__u8 server_wscale;
	__u8 advertised_wscale;
	__u8 client_wscale;
	__u8 state;
	bool has_timestamps; /* the handoff had */

	__u32 client_next;
	__u32 server_next;
	__u32 client_acked;
	__u32 seen_s;
	__u8 client_ending; /* what the client's segments tell, and below, what the server's do */
	__u8 server_ending;
	__u8 padding[2];
};

/* Where the options lie that are translated: word 0 is the first of the options. */
struct layout {
	bool is_usual;
	bool has_timestamps;
	__u32 sack_word; /* of the first edge */
	__u32 edges;
};

/* The options of a segment: none, timestamps, SACK, or these two in this order. */
static __always_inline struct layout read_layout(const __be32 *options, const void *data_end,
						 const struct segment *segment)
{
	__u32 words = (segment->payload_off - HEADERS_LEN) / 4, word = 0, head;
	struct layout layout = {};

	if (read_usual_timestamps(options, data_end, words * 4).found) {
		layout.has_timestamps = true;
		word = USUAL_TIMESTAMPS_WORDS;
	}
	if (words == word) {
		layout.is_usual = true;
		return layout;
	}
	if ((void *)(options + word + 1) > data_end)
		return layout;
	head = bpf_ntohl(options[word]);
	layout.sack_word = word + 1;
	layout.edges = words - word - 1;
	layout.is_usual = head == (USUAL_SACK | (2 + layout.edges * 4)) && layout.edges &&
			  !(layout.edges & 1) && layout.edges <= MAX_EDGES;
	return layout;
}

/* Add to 32 bits in network order. Returns: the sum with what has changed. */
static __always_inline __u64 add_at(__be32 *field, __u32 addend, __u64 sum)
{
	__be32 old = *field;

	*field = bpf_htonl(bpf_ntohl(old) + addend);
	return changed(sum, old, *field);
}

/* Take the MAC out of a handoff's TSecr. Returns: the sum with what has changed. */
static __always_inline __u64 strip_at(__be32 *field, __u64 sum)
{
	__be32 old = *field;

	*field = bpf_htonl(stripped(bpf_ntohl(old)));
	return changed(sum, old, *field);
}

static __always_inline __u64 set16_at(__be16 *field, __be16 value, __u64 sum)
{
	__be16 old = *field;

	*field = value;
	return changed(sum, old, value);
}

static __always_inline __u16 at_most_16_bits(__u32 value)
{
	return value > 0xffff ? 0xffff : value;
}

/* The SACK blocks of a client, of which some may lie in another page. */
static __always_inline __u64 shift_edges(__be32 *options, const void *data_end,
					 const struct layout *layout, __u32 addend, __u64 sum)
{
	__be32 *edge = options + layout->sack_word;

	for (int i = 0; i < MAX_EDGES; i++) {
		if (i >= layout->edges || (void *)(edge + 1) > data_end)
			break;
		sum = add_at(edge++, addend, sum);
	}
	return sum;
}

/* A client's segment as the server shall see it. False: left as it is. */
static __always_inline bool to_server(struct __sk_buff *skb, const struct segment *segment,
				      const struct service *service, const struct flow *flow)
{
	void *data_end = data_end_of(skb);
	struct iphdr *ip = ip_header(skb, HEADERS_LEN);
	struct tcphdr *tcp;
	struct layout layout;
	__be32 *options;
	__u64 sum = 0;

	if (!ip || (void *)ip + segment->payload_off > data_end)
		return false;
	tcp = (void *)(ip + 1);
	options = (void *)(tcp + 1);
	layout = read_layout(options, data_end, segment);
	if (!layout.is_usual)
		return false;
	sum = set16_at(&tcp->dest, service->server_port, sum);
	sum = add_at(&tcp->ack_seq, -flow->seq_delta, sum);
	if (layout.has_timestamps && (void *)(options + USUAL_TIMESTAMPS_WORDS) <= data_end) {
		if (segment->seq - 1 == flow->client_isn)
			sum = strip_at(options + 2, sum);
		sum = add_at(options + 2, -flow->ts_delta, sum);
	}
	if (layout.edges)
		sum = shift_edges(options, data_end, &layout, -flow->seq_delta, sum);
	if (flow->client_wscale) {
		__u32 window = bpf_ntohs(tcp->window) << flow->client_wscale;

		sum = set16_at(&tcp->window, bpf_htons(at_most_16_bits(window)), sum);
	}
	rewrite(ip, service->server);
	patch_checksum(skb, tcp, service->bridge, service->server, sum);
	return true;
}

/* A server's segment as the client shall see it. False: left as it is. */
static __always_inline bool to_client(struct __sk_buff *skb, const struct segment *segment,
				      const struct flow *flow)
{
	void *data_end = data_end_of(skb);
	struct iphdr *ip = ip_header(skb, HEADERS_LEN);
	struct tcphdr *tcp;
	struct layout layout;
	__be32 *options;
	__u64 sum = 0;

	if (!ip || (void *)ip + segment->payload_off > data_end)
		return false;
	tcp = (void *)(ip + 1);
	options = (void *)(tcp + 1);
	layout = read_layout(options, data_end, segment);
	if (!layout.is_usual)
		return false;
	sum = set16_at(&tcp->source, flow->vip_port, sum);
	sum = add_at(&tcp->seq, flow->seq_delta, sum);
	if (layout.has_timestamps && (void *)(options + USUAL_TIMESTAMPS_WORDS) <= data_end)
		sum = add_at(options + 1, flow->ts_delta, sum);
	if (flow->server_wscale != flow->advertised_wscale) {
		__u32 window = bpf_ntohs(tcp->window) << flow->server_wscale >>
			       flow->advertised_wscale;

		sum = set16_at(&tcp->window, bpf_htons(at_most_16_bits(window)), sum);
	}
	ip->check = ~folded(changed((__u16)~ip->check, ip->saddr, flow->vip));
	ip->saddr = flow->vip;
	patch_checksum(skb, tcp, segment->five_tuple.saddr, flow->vip, sum);
	return true;
}
