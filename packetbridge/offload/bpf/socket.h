/* What the host's stack has for a client's segment.
 *
 * The stack is asked, not a table of ours: it alone knows whether the connection is there.
 */
#pragma once

#include "bridge.h"
#include "kernel.h"
#include "options.h"

#define NEAR (1 << 24) /* how far numbers of one connection lie apart, in octets */

/* Values of `state` in struct bpf_sock that matter here. */
enum { TIME_WAIT = 6, LISTENING = 10, REQUESTED = 12 };

/* NO_SOCKET: none, so a handoff may open a connection. CONNECTED: the segment is for the stack.
 * ENDED: the TIME_WAIT of an earlier connection, to which the segment does not belong.
 * ODD: a connection whose numbers lie far off. A handoff may replace it, all else is its own.
 */
enum stack_state { NO_SOCKET, CONNECTED, ENDED, ODD };

/* expected_seq: with it the socket of a state other than NO_SOCKET accepts a RST (RFC 5961 §3.2). */
struct stack {
	enum stack_state state;
	__u32 expected_seq;
};

/* A connection of the host against a segment with payload.
 *
 * Numbers that lie near are the connection's own; so is the segment that it began with.
 */
static __always_inline struct stack of_connection(struct bpf_sock *sk, const struct segment *segment)
{
	struct bpf_tcp_sock *tcp = bpf_tcp_sock(sk);
	struct stack found = {.state = CONNECTED};

	if (!tcp)
		return found;
	if (segment->seq - tcp->rcv_nxt + NEAR < 2 * NEAR && tcp->snd_nxt - segment->ack < NEAR)
		return found;
	found.expected_seq = tcp->rcv_nxt;
	/* the first octet's number, or one more where a FIN has been received */
	if (found.expected_seq - (__u32)tcp->bytes_received - segment->seq > 1)
		found.state = ODD;
	return found;
}

/* A TIME_WAIT socket against any segment, by the rules for a SYN (RFC 1122 §4.2.2.13, RFC 6191 §2).
 *
 * A later number or a later timestamp is a new connection's. So are numbers that are far off, since
 * not every client counts up. The rest is late and the socket answers it.
 */
static __always_inline struct stack of_time_wait(struct __sk_buff *skb, struct bpf_sock *sk,
						 const struct segment *segment)
{
	struct tcp_timewait_sock *old = bpf_skc_to_tcp_timewait_sock(sk);
	struct stack found = {.state = CONNECTED};
	struct timestamps timestamps;
	__u32 behind_len, unacked_len;

	if (!old)
		return found;
	found.expected_seq = old->tw_sk.__tw_common.skc_tw_rcv_nxt;
	behind_len = found.expected_seq - segment->seq;
	unacked_len = old->tw_sk.__tw_common.skc_tw_snd_nxt - segment->ack;
	if (!has_payload(segment)) {
		found.state = behind_len < NEAR ? CONNECTED : ENDED;
		return found;
	}
	timestamps = read_timestamps(skb, segment);
	if (behind_len - 1 > 1 << 30 || unacked_len > 1 << 30 ||
	    (timestamps.found && is_after(timestamps.tsval, old->tw_ts_recent)))
		found.state = ENDED;
	return found;
}

/* What there is for the client's connection to the VIP. */
static __always_inline struct stack look_up(struct __sk_buff *skb, const struct service *service,
					    const struct segment *segment)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = {segment->five_tuple.saddr, service->vip,
			 segment->five_tuple.sport, service->vip_port},
	};
	struct stack found = {.state = NO_SOCKET};
	struct bpf_sock *sk;
	__u32 state;

	sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return found;
	/* volatile: clang 14 else reads it through a computed pointer, which is forbidden here */
	state = *(volatile __u32 *)&sk->state;
	if (state == TIME_WAIT)
		found = of_time_wait(skb, sk, segment);
	else if (state != LISTENING && state != REQUESTED && has_payload(segment))
		found = of_connection(sk, segment);
	else if (state != LISTENING)
		found.state = CONNECTED;
	bpf_sk_release(sk);
	return found;
}
