/* The client's handshake, played again towards the server, where nothing about it is unusual.
 *
 * For a moment the handoff is the client's SYN, whose clone is queued at the interface's ingress;
 * then the handoff itself is queued behind it. The server's stack answers the SYN before the
 * handoff's turn has come, so nothing is stored here: when it comes in again, its flow is open. Where
 * it is not (no listener, a full queue, an old connection), the handoff goes up, and the portable
 * engine does it all once more; SYNs of the same numbers do not add up.
 *
 * Source: RFC 9293 §3.1, §3.2. Twin: packetbridge/modes/replay.py
 */
#pragma once

#include "bridge.h"
#include "cookie.h"
#include "options.h"
#include "translate.h"

#define MAX_MSS 3960 /* with headers, as much as the packet queue copies (packetbridge/modes/replay.py) */
#define TTL 64
#define DONT_FRAGMENT 0x4000
#define CHUNK_LEN 512 /* as much as one call of bpf_csum_diff takes before Linux 6.8 */
#define MAX_CHUNKS 18 /* a jumbo frame */

/* Before the options: MSS; SACK permitted and timestamps, or NOPs; NOP, window scale. */
struct syn {
	struct iphdr ip;
	struct tcphdr tcp;
	__be32 options[5];
};

struct chunk {
	__be32 words[CHUNK_LEN / 4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chunk);
} chunks SEC(".maps");

/* Whether a segment has arrived undamaged, as far as its checksum tells (RFC 9293 §3.1).
 *
 * What has been coalesced has been checked before. A field with the sum of the pseudo-header alone
 * is from this machine and has met no wire.
 */
static __noinline bool checksum_holds(struct __sk_buff *skb, const struct segment *segment)
{
	__u32 zero = 0, len = segment->packet.len - segment->packet.l4_off, off = 0;
	struct chunk *chunk = bpf_map_lookup_elem(&chunks, &zero);
	__u64 pseudo = pseudo_sum(segment->five_tuple.saddr,
				  segment->five_tuple.daddr, len), sum = pseudo;
	__be16 field;

	if (skb->gso_size)
		return true;
	if (!chunk || bpf_skb_load_bytes(skb, CHECK_OFF, &field, sizeof(field)))
		return false;
	for (int i = 0; i < MAX_CHUNKS && off < len; i++) {
		__u32 rest = len - off;

		if (rest > CHUNK_LEN)
			rest = CHUNK_LEN;
		else
			__builtin_memset(chunk, 0, sizeof(*chunk));
		/* 1..512, said so that clang 14's code is plain to the verifier of 6.1 */
		asm volatile("%0 += -1; %0 &= %1; %0 += 1" : "+r"(rest) : "i"(CHUNK_LEN - 1));
		if (bpf_skb_load_bytes(skb, TCP_OFF + off, chunk, rest))
			return false;
		sum += (__u32)bpf_csum_diff(NULL, 0, chunk->words, CHUNK_LEN, 0);
		off += CHUNK_LEN;
	}
	return off >= len && (folded(sum) == 0xffff || folded(pseudo) == field);
}

/* The client's SYN, as far as the cookie and the handoff tell it.
 *
 * Twin: packetbridge/modes/replay.py:_emit_syn
 */
static __always_inline void make_syn(struct syn *syn, const struct service *service,
				     const struct segment *segment, __u32 window,
				     const struct timestamps *timestamps)
{
	__u32 cookie_isn = segment->ack - 1, wscale = cookie_isn & 0xf, word = 1, mss, tcp_len;
	bool sack = cookie_isn >> 4 & 1;

	mss = cookie_mss(cookie_isn);
	if (mss > MAX_MSS)
		mss = MAX_MSS;
	syn->options[0] = bpf_htonl(USUAL_MSS | mss);
	if (timestamps->found) {
		syn->options[1] = sack ? bpf_htonl(USUAL_SACK_PERMITTED_TIMESTAMPS)
				       : bpf_htonl(USUAL_TIMESTAMPS);
		syn->options[2] = bpf_htonl(timestamps->tsval);
		word = 4;
	} else if (sack) {
		syn->options[1] = bpf_htonl(USUAL_SACK_PERMITTED);
		word = 2;
	}
	if (wscale != WSCALE_NONE) {
		__be32 scale = bpf_htonl(USUAL_WSCALE | wscale);

		/* no computed index: the stack of 6.1 takes none that may be of any size */
		if (word == 1)
			syn->options[1] = scale;
		else if (word == 2)
			syn->options[2] = scale;
		else
			syn->options[4] = scale;
		word++;
		window <<= wscale;
	}
	tcp_len = sizeof(struct tcphdr) + 4 * word;
	syn->tcp.source = segment->five_tuple.sport;
	syn->tcp.dest = service->server_port;
	syn->tcp.seq = bpf_htonl(segment->seq - 1);
	syn->tcp.doff = tcp_len / 4;
	syn->tcp.syn = 1;
	syn->tcp.window = bpf_htons(at_most_16_bits(window));
	syn->tcp.check = ~folded(pseudo_sum(segment->five_tuple.saddr, service->server, tcp_len) +
				 (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&syn->tcp,
						      sizeof(*syn) - sizeof(syn->ip), 0));
	syn->ip.version = 4;
	syn->ip.ihl = 5;
	syn->ip.tot_len = bpf_htons(sizeof(struct iphdr) + tcp_len);
	syn->ip.frag_off = bpf_htons(DONT_FRAGMENT);
	syn->ip.ttl = TTL;
	syn->ip.protocol = IPPROTO_TCP;
	syn->ip.saddr = segment->five_tuple.saddr;
	syn->ip.daddr = service->server;
	syn->ip.check = ~folded((__u32)bpf_csum_diff(NULL, 0, (__be32 *)&syn->ip,
						     sizeof(syn->ip), 0));
}

/* Send the server the client's SYN, then let the handoff come in again. NEXT: it is as it was.
 * reason: by which that is counted.
 *
 * The rest of the handoff lies behind the SYN, where the stack cuts it off by the header's length.
 */
static __noinline int send_syn(struct __sk_buff *skb, const struct service *service,
			       const struct segment *segment,
			       const struct timestamps *timestamps, __u32 reason)
{
	__u32 zero = 0, mark;
	/* not on the stack, of which Linux 6.1 counts the unused parts, too */
	struct syn *handoff = bpf_map_lookup_elem(&chunks, &zero);
	struct syn syn = {};

	if (!handoff || bpf_skb_load_bytes(skb, IP_OFF, handoff, sizeof(*handoff)))
		return NEXT; /* shorter than a SYN */
	make_syn(&syn, service, segment, bpf_ntohs(handoff->tcp.window), timestamps);
	if (bpf_skb_store_bytes(skb, IP_OFF, &syn, sizeof(syn), BPF_F_RECOMPUTE_CSUM))
		return NEXT;
	mark = skb->mark;
	skb->mark = server_mark; /* which the server's answers inherit */
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	skb->mark = mark;
	if (bpf_skb_store_bytes(skb, IP_OFF, handoff, sizeof(*handoff), BPF_F_RECOMPUTE_CSUM))
		return DROP; /* the client sends it again */
	count(reason);
	return requeue(skb);
}

/* What a server's SYN-ACK says. wscale: WSCALE_NONE where it has no such option. */
struct answer {
	bool has_timestamps;
	__u32 tsval;
	__u32 wscale;
};

static __always_inline struct answer read_answer(struct __sk_buff *skb,
						 const struct segment *segment)
{
	struct answer answer = {.wscale = WSCALE_NONE};
	struct option_octets octets = {};
	__u32 len = read_options(skb, segment, &octets), place = IP_OFF + HEADERS_LEN;
	__u8 wscale;
	__be32 tsval;
	int off;

	if (!len)
		return answer;
	off = option_off(&octets, len, OPTION_TIMESTAMPS, TIMESTAMPS_LEN);
	if (off >= 0 && !bpf_skb_load_bytes(skb, place + off + 2, &tsval, sizeof(tsval))) {
		answer.has_timestamps = true;
		answer.tsval = bpf_ntohl(tsval);
	}
	off = option_off(&octets, len, OPTION_WSCALE, WSCALE_LEN);
	if (off >= 0 && !bpf_skb_load_bytes(skb, place + off + 2, &wscale, sizeof(wscale)))
		answer.wscale = wscale > WSCALE_MAX ? WSCALE_MAX : wscale;
	return answer;
}

/* Reckon, from the server's SYN-ACK, how the two connections differ.
 *
 * Twin: packetbridge/modes/replay.py:open_flow
 */
static __always_inline void open_flow(struct flow *flow, __u32 server_isn,
				      const struct answer *answer)
{
	__u32 offered = flow->cookie_isn & 0xf;

	flow->seq_delta = flow->cookie_isn - server_isn;
	flow->ts_delta = flow->has_timestamps && answer->has_timestamps
				 ? flow->ts_delta - answer->tsval : 0;
	if (offered != WSCALE_NONE) {
		bool scales = answer->wscale != WSCALE_NONE;

		flow->server_wscale = scales ? answer->wscale : 0;
		flow->client_wscale = scales ? 0 : offered;
	} else {
		flow->advertised_wscale = 0;
	}
	barrier(); /* whoever sees that it is open sees the rest */
	*(volatile __u8 *)&flow->state = OPEN;
}
