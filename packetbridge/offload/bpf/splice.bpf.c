/* Splice: a client's segments, translated for the server, and the server's for the client.
 *
 * A first data segment whose cookie holds makes the programs replay the handshake (replay.h); from
 * the server's SYN-ACK on the flow's segments are translated, client → server at tc ingress, server
 * → client at tc egress, until the daemon's sweep finds that it has ended or gone silent.
 *
 * The portable engine gets all else: servers that do not answer, what does not fit a flow, and what
 * has unusual options. For that a server's packet is turned round and comes in once more.
 *
 * Twin: packetbridge/modes/splice.py
 */
#include <linux/errno.h>

#include "bridge.h"
#include "constants.h"
#include "checksum.h"
#include "cookie.h"
#include "translate.h"
#include "up.h"

#define HOST 0 /* PACKET_HOST: for this host, whatever the frame's address is */

#define BOTH_ENDED (CLIENT_FIN | SERVER_FIN | CLIENT_FIN_ACKED | SERVER_FIN_ACKED)

const volatile __u32 server_mark; /* of packets to servers, and of their answers */

/* Seconds, counted up by packetbridge/offload/splice.py. Any clock of the kernel's would cost more. */
volatile __u32 current_s;

#include "replay.h"

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

static __always_inline struct flow_key key_of(const struct service *service,
					      const struct segment *segment)
{
	return (struct flow_key){segment->five_tuple.saddr, service->server,
				 segment->five_tuple.sport, service->server_port};
}

/* How far from what the server has acknowledged a client's segment may lie: its window. */
static __always_inline __u32 reach_of(const struct flow *flow)
{
	return PLAUSIBLE_LEN + (0xffff << (flow->server_wscale & 15));
}

static __always_inline bool has_ended(const struct flow *flow)
{
	__u8 ending = flow->client_ending | flow->server_ending;

	return ending & WAS_RESET || (ending & BOTH_ENDED) == BOTH_ENDED;
}

/* Whether it can be no other connection's: without payload it opens none, with one its numbers
 * must fit the flow. Twin: packetbridge/modes/splice.py:_is_plausible
 */
static __always_inline bool is_of_flow(const struct segment *segment, const struct flow *flow)
{
	__u32 reach = reach_of(flow), wscale = flow->cookie_isn & 0xf;

	if (!has_payload(segment))
		return true;
	if (wscale == WSCALE_NONE)
		wscale = 0;
	return segment->seq - flow->client_acked + reach <= 2 * reach &&
	       flow->server_next - segment->ack <= PLAUSIBLE_LEN + (0xffff << wscale) &&
	       !has_ended(flow);
}

/* Whether the server has all that the client sends, and its FIN: what comes behind that is of the next
 * connection from its port. Twin: packetbridge/modes/splice.py:_client_is_done
 */
static __always_inline bool client_is_done(const struct flow *flow)
{
	return flow->client_ending & CLIENT_FIN && flow->client_acked == flow->client_next;
}

/* Keep track of what the client has sent, as far as the server's own numbers allow for it. */
static __always_inline void note_client(struct flow *flow, const struct segment *segment)
{
	__u32 end = segment->seq + payload_len(segment);

	if (segment->flags & (FIN | RST)) {
		end += segment->flags & FIN;
		if (segment->flags & RST && segment->seq == flow->client_acked)
			flow->client_ending |= WAS_RESET;
	}
	if (is_after(end, flow->client_next) && end - flow->client_acked <= reach_of(flow) &&
	    !client_is_done(flow)) {
		flow->client_next = end;
		if (flow->client_ending & CLIENT_FIN)
			flow->client_ending &= ~CLIENT_FIN; /* it was none: there is more */
	}
	if (segment->flags & FIN && end == flow->client_next)
		flow->client_ending |= CLIENT_FIN;
	if (flow->server_ending & SERVER_FIN && segment->ack == flow->server_next)
		flow->client_ending |= SERVER_FIN_ACKED;
	flow->seen_s = current_s;
}

/* The same of the server. */
static __always_inline void note_server(struct flow *flow, const struct segment *segment)
{
	__u32 end = segment->seq + payload_len(segment) + flow->seq_delta;

	if (segment->flags & (FIN | RST)) {
		end += segment->flags & FIN;
		flow->server_ending |= segment->flags & RST ? WAS_RESET : SERVER_FIN;
	}
	if (is_after(end, flow->server_next))
		flow->server_next = end;
	if (segment->flags & ACK && is_after(segment->ack, flow->client_acked))
		flow->client_acked = segment->ack;
	if (flow->client_ending & CLIENT_FIN && segment->ack == flow->client_next)
		flow->server_ending |= CLIENT_FIN_ACKED;
	flow->seen_s = current_s;
}

/* Beside the DSCP, which saves an argument: no flow was found, or that of a copy; a health check. */
enum { IS_FIRST = 1 << 8, IS_COPY = 1 << 9, IS_CHECK = 1 << 10 };

/* The segment that opens a flow, over whatever flow of this service was there (a reused port).
 *
 * The flow of a copy stays as it is: on another processor it may become open meanwhile.
 */
static __noinline int on_handoff(struct __sk_buff *skb, const struct service *service,
				 const struct segment *segment, __u32 how)
{
	struct flow_key key = key_of(service, segment);
	__u32 reason = how & IS_CHECK ? REASON_CHECK : REASON_REPLAYED;
	int error;
	struct timestamps timestamps = read_timestamps(skb, segment);
	struct flow flow = {
		.ts_delta = stripped(timestamps.tsecr),
		.client_isn = segment->seq - 1,
		.cookie_isn = segment->ack - 1,
		.vip = service->vip,
		.vip_port = service->vip_port,
		.dscp = how & 0xff,
		.advertised_wscale = service->wscale,
		.state = REPLAYING,
		.has_timestamps = timestamps.found,
		.client_next = segment->seq + payload_len(segment),
		.server_next = segment->ack,
		.client_acked = segment->seq,
		.seen_s = current_s,
	};

	if (!checksum_holds(skb, segment)) {
		count(REASON_BAD_CHECKSUM);
		return DROP;
	}
	if (how & IS_COPY)
		return send_syn(skb, service, segment, &timestamps, reason);
	/* another processor may have had a copy just now, and its flow may be open already */
	error = bpf_map_update_elem(&flows, &key, &flow, how & IS_FIRST ? BPF_NOEXIST : BPF_ANY);
	if (error)
		return error == -EEXIST ? requeue(skb) : up(UP_FIRST);
	return send_syn(skb, service, segment, &timestamps, reason);
}

/* A segment that no open flow has. flow: one that waits for its server, or has other numbers.
 *
 * It reads the segment itself: given it, clang would keep it in memory on the way of all others.
 */
static __noinline int on_other(struct __sk_buff *skb, const struct service *service,
			       const struct flow *flow)
{
	struct iphdr *ip = ip_header(skb, HEADERS_LEN);
	/* read once: clang 14 else makes a pointer into the context, which is forbidden */
	bool is_again = *(volatile __u32 *)&skb->tc_index == REQUEUED, is_others, is_waiting;
	struct segment segment;
	__u32 dscp; /* and more, as on_handoff takes it */
	int proof = NOTHING;

	if (!ip || !read_frame(skb, ip, &segment))
		return NEXT;
	dscp = ip->tos >> 2;
	if (flow && flow->state == PORTABLE)
		return up(UP_FLOW);
	is_others = flow && flow->dscp != dscp; /* another service has the client's port */
	is_waiting = flow && flow->state == REPLAYING && !is_others;
	if (is_again && is_waiting)
		return up(UP_FIRST); /* the server has not answered at once */
	if ((!flow || is_waiting || is_others || flow->client_isn != segment.seq - 1) &&
	    has_payload(&segment) && !(segment.flags & RST))
		proof = proof_of(skb, service, &segment);
	if (proof == SPENT || proof == BAD_ECHO || (proof == TOO_MANY && !flow)) {
		count(reason_of(proof));
		return DROP;
	}
	if (is_proven(proof)) {
		/* one that ends the connection as well is the portable engine's, too */
		if (is_others || segment.flags & FIN || (is_again && !flow))
			return up(UP_FIRST);
		if (!flow)
			dscp |= IS_FIRST;
		else if (flow->client_isn == segment.seq - 1)
			dscp |= IS_COPY;
		if (proof == PROVEN_CHECK)
			dscp |= IS_CHECK;
		return on_handoff(skb, service, &segment, dscp);
	}
	if (!is_waiting)
		return up(flow ? UP_FLOW : UP_UNKNOWN);
	if (has_payload(&segment) || segment.flags & (FIN | RST))
		return requeue(skb); /* the SYN and the handoff wait before it */
	count(REASON_REPLAY_PENDING);
	return DROP;
}

static __always_inline int on_client(struct __sk_buff *skb, struct iphdr *ip,
				     const struct service *service)
{
	__u8 dscp = ip->tos >> 2;
	struct segment segment;
	struct flow_key key;
	struct flow *flow;

	if (ip->ttl <= 1 || !read_frame(skb, ip, &segment) ||
	    (segment.flags & (SYN | ACK)) != ACK || segment.five_tuple.dport != service->vip_port)
		return on_unusual(skb, service->vip_port);
	key = key_of(service, &segment);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->state != OPEN || flow->dscp != dscp || !is_of_flow(&segment, flow))
		return on_other(skb, service, flow);
	if (!to_server(skb, &segment, service, flow))
		return up(UP_FLOW);
	note_client(flow, &segment);
	skb->mark = server_mark; /* so that a RST in answer is known for one of ours */
	count(REASON_TO_SERVER);
	return NEXT;
}

SEC("tc")
int on_ingress(struct __sk_buff *skb)
{
	const struct service *service;
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_over())
		return NEXT;
	ip = pulled_ip_header(skb, HEADERS_LEN);
	if (!ip)
		return on_short(skb);
	service = service_of(ip);
	if (service && ip->protocol == IPPROTO_TCP)
		return on_client(skb, ip, service);
	if (service && ip->protocol == IPPROTO_ICMP)
		return icmp_up(skb);
	if (skb->mark == server_mark)
		/* a server's packet, turned round: its frame is addressed to somebody else */
		bpf_skb_change_type(skb, HOST);
	return NEXT;
}

/* The server's answer to the replayed SYN. Whatever it is, the client need not see it: what opens
 * no flow makes the handoff go up, and the portable engine asks again. An ACK is from an older
 * connection, which it has to end first; it goes up behind the handoff, since the server says no
 * such thing twice in half a second (RFC 5961 §10).
 */
static __noinline int on_answer(struct __sk_buff *skb, struct flow *flow)
{
	struct iphdr *ip = ip_header(skb, HEADERS_LEN);
	struct handshake opened_by;
	struct segment segment;
	struct answer answer;

	if (!ip || !read_frame(skb, ip, &segment))
		return DROP;
	if ((segment.flags & (SYN | ACK | RST)) == (SYN | ACK) &&
	    segment.ack == flow->client_isn + 1) {
		answer = read_answer(skb, &segment);
		open_flow(flow, segment.seq, &answer);
		opened_by.saddr = segment.five_tuple.daddr;
		opened_by.daddr = flow->vip;
		opened_by.sport = segment.five_tuple.dport;
		opened_by.dport = flow->vip_port;
		opened_by.client_isn = flow->client_isn;
		spend(&opened_by, flow->cookie_isn);
		count(REASON_OPENED);
	} else if ((segment.flags & (SYN | ACK | RST)) == ACK) {
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	} else {
		count(REASON_REPLAY_PENDING);
	}
	return DROP;
}

SEC("tc")
int on_egress(struct __sk_buff *skb)
{
	struct segment segment;
	struct flow_key key = {};
	struct flow *flow;
	struct iphdr *ip;

	if (skb->mark != server_mark || skb->protocol != bpf_htons(ETH_P_IP) || is_over())
		return NEXT;
	ip = pulled_ip_header(skb, HEADERS_LEN);
	if (!ip || ip->protocol != IPPROTO_TCP || !read_frame(skb, ip, &segment))
		return NEXT;
	key.client = segment.five_tuple.daddr;
	key.server = segment.five_tuple.saddr;
	key.client_port = segment.five_tuple.dport;
	key.server_port = segment.five_tuple.sport;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && flow->state == REPLAYING)
		return on_answer(skb, flow);
	if (!flow || flow->state != OPEN || segment.flags & SYN || !to_client(skb, &segment, flow))
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	note_server(flow, &segment);
	count(REASON_TO_CLIENT);
	return NEXT;
}

/* For how long flows stay without a packet, seconds. left: how many are there afterwards.
 *
 * Twin: packetbridge/offload/splice.py:Splice.sweep
 */
struct sweep {
	__u32 now_s;
	__u32 idle_s;
	__u32 closing_s;
	__u32 replay_s;
	__u32 left;
};

static __u64 sweep_flow(void *map, const struct flow_key *key, const struct flow *flow,
		       struct sweep *sweep)
{
	__u32 most_s = sweep->idle_s;

	if (flow->state == REPLAYING)
		most_s = sweep->replay_s;
	else if (has_ended(flow))
		most_s = sweep->closing_s;
	/* those of the portable engine leave when it forgets them; a second may have begun since */
	if (flow->state != PORTABLE && (__s32)(sweep->now_s - flow->seen_s) > (__s32)most_s)
		bpf_map_delete_elem(map, key);
	else
		sweep->left++;
	return 0;
}

/* Remove the flows that have ended or gone silent. Called by the daemon. */
SEC("syscall")
int sweep_flows(struct sweep *sweep)
{
	struct sweep own = *sweep;

	own.left = 0;
	bpf_for_each_map_elem(&flows, sweep_flow, &own, 0);
	sweep->left = own.left;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
