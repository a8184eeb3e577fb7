/* Adopt: the host's own stack takes a client's connection over, with the cookie's ISN.
 *
 * At tc ingress of the bridge's interface, in the namespace of the server. A tagged segment gets
 * the VIP as destination and goes to the stack. The first data segment of a flow, whose cookie
 * holds, becomes a connection of the server's listener; from then on the stack sends replies to
 * the client by itself, and nothing of them passes here.
 *
 * What cannot be decided here goes on as it is, to the portable engine: unknown flows, listeners
 * that refuse (MPTCP), whatever is malformed.
 *
 * Twin: packetbridge/modes/splice.py, as far as the verdicts are the same.
 */
#include "bridge.h"
#include "checksum.h"
#include "cookie.h"
#include "options.h"
#include "socket.h"
#include "up.h"

#define NO_LISTENER 1
#define FOLLOWS 0x5ce2 /* in tc_index: a handoff's copy that comes in behind it */
#define FLAGS_OFF 12 /* in the TCP header: data offset and flags, 16 bits */
#define ICMP_LEN 8
#define QUOTE_LEN (2 * sizeof(struct iphdr) + ICMP_LEN + 8)

/* Flows that the portable engine has taken because the listener would not. */
struct flow_key {
	__be32 client;
	__be16 client_port;
	__u16 dscp;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, __u8);
} refused SEC(".maps");

/* The destination becomes the VIP, the tag is taken off, and the packet goes to the stack. */
static __always_inline int to_stack(struct __sk_buff *skb, const struct service *service,
				    __u32 reason)
{
	struct iphdr *ip = ip_header(skb, HEADERS_LEN);

	if (!ip)
		return NEXT;
	rewrite(ip, service->vip);
	count(reason);
	if (ip->protocol == IPPROTO_TCP)
		patch_checksum(skb, (void *)(ip + 1), service->bridge, service->vip, 0);
	return NEXT;
}

/* What the cookie and the segment say of the handshake.
 *
 * The server's clock starts at TSecr + the round trip that TSecr names, so that the stack's first
 * sample is the true round trip, and its timestamps name the backend.
 */
static __always_inline struct bpf_tcp_req_attrs attributes(const struct service *service,
							   __u32 cookie_isn,
							   const struct timestamps *timestamps)
{
	__u32 wscale = cookie_isn & 0xf, start = stripped(timestamps->tsecr);
	__u32 round_trip_ms = start & CLOCK_MASK;
	struct bpf_tcp_req_attrs attrs = {
		.mss = cookie_mss(cookie_isn),
		.sack_ok = cookie_isn >> 4 & 1,
		.tstamp_ok = timestamps->found,
	};

	if (wscale != WSCALE_NONE) {
		attrs.wscale_ok = 1;
		attrs.snd_wscale = wscale;
		attrs.rcv_wscale = service->wscale;
	}
	if (timestamps->found) {
		if (round_trip_ms > MAX_ROUND_TRIP_MS)
			round_trip_ms = 0;
		attrs.rcv_tsval = timestamps->tsval;
		attrs.rcv_tsecr = start + round_trip_ms;
	}
	return attrs;
}

/* The server's listener, or NULL. A direct connection from the client's address and port may
 * stand before it; nobody has one from port 0.
 */
static __always_inline struct bpf_sock *find_listener(struct __sk_buff *skb,
						      const struct service *service,
						      const struct segment *segment)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = {segment->five_tuple.saddr, service->server,
			 segment->five_tuple.sport, service->server_port},
	};
	struct bpf_sock *sk;
	__u32 state;

	for (int i = 0; i < 2; i++) {
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return NULL;
		state = *(volatile __u32 *)&sk->state;
		if (state == LISTENING)
			return sk;
		bpf_sk_release(sk);
		tuple.ipv4.sport = 0;
	}
	return NULL;
}

/* Let the stack make a connection of this segment. Returns: 0, or why it will not. */
static __noinline int open_connection(struct __sk_buff *skb, const struct service *service,
					    const struct segment *segment)
{
	struct timestamps timestamps = read_timestamps(skb, segment);
	struct bpf_tcp_req_attrs attrs = attributes(service, segment->ack - 1, &timestamps);
	struct bpf_sock *listener = find_listener(skb, service, segment);
	struct tcp_sock *sk;
	int error = NO_LISTENER;

	if (!listener)
		return error;
	sk = bpf_skc_to_tcp_sock(listener);
	if (sk)
		error = bpf_sk_assign_tcp_reqsk(skb, (struct sock *)sk, &attrs, sizeof(attrs));
	bpf_sk_release(listener);
	return error;
}

/* End the old connection on these ports by the client's own RST, then let the packet come again.
 *
 * For a moment the packet is the RST, whose clone is queued: no options, and the number that the
 * old socket expects. A payload does not matter in one.
 */
static __noinline int end_old_socket(struct __sk_buff *skb, const struct service *service,
					  const struct segment *segment, __u32 expected_seq)
{
	__be32 seq = bpf_htonl(expected_seq), old_seq = bpf_htonl(segment->seq);
	__be16 flags = bpf_htons(sizeof(struct tcphdr) / 4 << 12 | RST), old_flags;
	__u8 headers[HEADERS_LEN];
	struct iphdr *ip;

	if (bpf_skb_load_bytes(skb, IP_OFF, headers, sizeof(headers)))
		return NEXT;
	__builtin_memcpy(&old_flags, headers + sizeof(struct iphdr) + FLAGS_OFF, 2);
	bpf_skb_store_bytes(skb, TCP_OFF + offsetof(struct tcphdr, seq), &seq, 4, 0);
	bpf_skb_store_bytes(skb, TCP_OFF + FLAGS_OFF, &flags, 2, 0);
	bpf_l4_csum_replace(skb, CHECK_OFF, old_seq, seq, 4);
	bpf_l4_csum_replace(skb, CHECK_OFF, old_flags, flags, 2);
	ip = ip_header(skb, HEADERS_LEN);
	if (!ip)
		return DROP;
	rewrite(ip, service->vip);
	bpf_l4_csum_replace(skb, CHECK_OFF, service->bridge, service->vip, BPF_F_PSEUDO_HDR | 4);
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	bpf_l4_csum_replace(skb, CHECK_OFF, service->vip, service->bridge, BPF_F_PSEUDO_HDR | 4);
	bpf_skb_store_bytes(skb, IP_OFF, headers, sizeof(headers), 0);
	return requeue(skb);
}

/* Take out of a handoff's echo what it proves, which is no time of the server's. */
static __noinline int strip_echo(struct __sk_buff *skb, const struct segment *segment)
{
	int off = tsval_off(skb, segment) + 5; /* of the two octets in the middle of TSecr */
	__be16 old, new;

	if (off < 5 || bpf_skb_load_bytes(skb, off, &old, sizeof(old)))
		return 0;
	new = old & bpf_htons(~STAMP_MAC_MASK >> 8);
	bpf_skb_store_bytes(skb, off, &new, sizeof(new), 0);
	if (off & 1) { /* RFC 1071 §2: a sum of swapped octets is the sum, swapped */
		old = old << 8 | old >> 8;
		new = new << 8 | new >> 8;
	}
	return bpf_l4_csum_replace(skb, CHECK_OFF, old, new, sizeof(new));
}

/* What comes in behind a handoff, to see whether the stack has the connection now: a full accept
 * queue, damage, or a rule of the host's may be against it, and then the client tries again.
 */
static __noinline int on_follower(const struct service *service, const struct segment *segment,
				  const struct stack *stack)
{
	struct handshake flow = {
		segment->five_tuple.saddr, service->vip, segment->five_tuple.sport,
		service->vip_port, segment->seq - 1,
	};

	if (stack->state == CONNECTED)
		spend(&flow, segment->ack - 1);
	return DROP;
}

/* The first data segment of a new connection. */
static __always_inline int on_handoff(struct __sk_buff *skb, struct service *service,
				      const struct segment *segment, const struct stack *stack,
				      const struct flow_key *key, int proof)
{
	__u8 yes = 1;
	int error;

	if (stack->state != NO_SOCKET)
		/* a kernel with tcp_rfc1337 keeps TIME_WAIT whatever comes: try once */
		return skb->tc_index == REQUEUED
			       ? up(UP_UNKNOWN)
			       : end_old_socket(skb, service, segment, stack->expected_seq);
	error = open_connection(skb, service, segment);
	if (!error) {
		skb->tc_index = FOLLOWS;
		bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
		skb->tc_index = 0;
		strip_echo(skb, segment);
		return to_stack(skb, service,
				proof == PROVEN_CHECK ? REASON_CHECK : REASON_OPENED);
	}
	if (error != NO_LISTENER) { /* else the portable engine's SYN is refused as well */
		service->has_refused = 1;
		bpf_map_update_elem(&refused, key, &yes, BPF_ANY);
	}
	return up(UP_FIRST);
}

/* Whether a segment's TSecr is from the server's own clock, so that the stack had, or has, the
 * connection. Those of the first flight name the backend as well, but lie below where the
 * server's clock begins, which is at most two round trips; but for the handoff's, which ends in the
 * first one. This saves looking the socket up.
 */
static __always_inline bool echoes_the_server(const struct __sk_buff *skb,
					      const struct segment *segment)
{
	struct timestamps timestamps = usual_timestamps(skb, segment);

	return timestamps.found && timestamps.tsecr >> 24 &&
	       (timestamps.tsecr & 0xffffff) > 2 * MAX_ROUND_TRIP_MS &&
	       (!has_payload(segment) || (timestamps.tsecr & CLOCK_MASK) > MAX_ROUND_TRIP_MS);
}

/* A segment that is no connection's of the stack. */
static __noinline int on_other(struct __sk_buff *skb, struct service *service,
			       const struct segment *segment, const struct stack *stack,
			       __u32 dscp)
{
	struct flow_key key = {segment->five_tuple.saddr, segment->five_tuple.sport, dscp};
	int proof = NOTHING;

	if (service->has_refused && bpf_map_lookup_elem(&refused, &key))
		return up(UP_FLOW);
	if (has_payload(segment) && (segment->flags & (SYN | RST | ACK)) == ACK)
		proof = proof_of(skb, service, segment);
	if (is_proven(proof))
		return on_handoff(skb, service, segment, stack, &key, proof);
	if (proof == SPENT || proof == BAD_ECHO || (proof == TOO_MANY && stack->state != ODD)) {
		count(reason_of(proof));
		return DROP;
	}
	if (stack->state == ODD)
		return to_stack(skb, service, REASON_TO_SERVER);
	if (has_payload(segment) && skb->tc_index != REQUEUED)
		return requeue(skb); /* the first one may be just before it, not yet at the stack */
	return up(UP_UNKNOWN);
}

static __always_inline int on_segment(struct __sk_buff *skb, struct iphdr *ip,
				      struct service *service)
{
	__u32 dscp = ip->tos >> 2;
	struct segment segment, other;
	struct stack stack;

	if (ip->ttl <= 1 || !read_frame(skb, ip, &segment) || segment.flags & SYN ||
	    segment.five_tuple.dport != service->vip_port)
		return on_unusual(skb, service->vip_port);
	if (!service->has_refused && echoes_the_server(skb, &segment) && skb->tc_index != FOLLOWS)
		return to_stack(skb, service, REASON_TO_SERVER);
	stack = look_up(skb, service, &segment);
	if (stack.state == CONNECTED && skb->tc_index != FOLLOWS)
		return to_stack(skb, service, REASON_TO_SERVER);
	other = segment; /* a copy: given the first, clang would keep it in memory from the start */
	if (skb->tc_index == FOLLOWS)
		return on_follower(service, &other, &stack);
	return on_other(skb, service, &other, &stack, dscp);
}

/* An error about a packet of the stack's own, which then acts on it (RFC 1191 §6.3). */
static __always_inline int on_icmp(struct __sk_buff *skb, const struct service *service)
{
	struct iphdr *ip = pulled_ip_header(skb, QUOTE_LEN);
	struct cursor cursor = cursor_of(ip);
	struct bpf_sock_tuple tuple = {};
	const struct iphdr *quoted;
	struct packet packet;
	const __be16 *ports;
	struct bpf_sock *sk;
	__u32 state;

	if (!ip || !read_ipv4(&cursor, &packet) || packet.ttl <= 1 ||
	    !is_icmp_error(*(__u8 *)(ip + 1)))
		return icmp_up(skb);
	quoted = (void *)(ip + 1) + ICMP_LEN;
	ports = (const void *)(quoted + 1);
	if (quoted->ihl != 5 || quoted->protocol != IPPROTO_TCP || quoted->saddr != service->vip ||
	    ports[0] != service->vip_port)
		return icmp_up(skb);
	tuple.ipv4.saddr = quoted->daddr;
	tuple.ipv4.sport = ports[1];
	tuple.ipv4.daddr = service->vip;
	tuple.ipv4.dport = service->vip_port;
	sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return icmp_up(skb);
	state = *(volatile __u32 *)&sk->state;
	bpf_sk_release(sk);
	return state == LISTENING ? icmp_up(skb) : to_stack(skb, service, REASON_ICMP_FORWARDED);
}

SEC("tc")
int on_ingress(struct __sk_buff *skb)
{
	struct service *service;
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_over())
		return NEXT;
	ip = pulled_ip_header(skb, HEADERS_LEN);
	if (!ip)
		return on_short(skb);
	service = service_of(ip);
	if (!service)
		return NEXT;
	if (ip->protocol == IPPROTO_TCP)
		return on_segment(skb, ip, service);
	if (ip->protocol == IPPROTO_ICMP)
		return on_icmp(skb, service);
	return NEXT;
}

char LICENSE[] SEC("license") = "GPL";
