/* The handshake, answered without state: SYN to SYN-ACK, in place.
 *
 * Twin: balancer/modes/split/handshake.py
 */
#pragma once

#include "segment.h"

#define NO_WSCALE 255
#define ANSWERED_BARE -1

/* What a SYN offers. Twin: common/wire/options.py:Options */
struct offer {
	__u32 tsval;
	__u16 mss;
	__u8 wscale;
	__u8 sack;
	__u8 timestamps;
};

/* A segment to be, from the TCP header on. words: with all its options. */
struct tcp_words {
	__be32 words[(sizeof(struct tcphdr) + MAX_OPTIONS_LEN) / 4];
	__u16 count;
	__u16 has_timestamps;
};

/* The hash of the handshake of ours that a segment is the first after, or 0. */
static __always_inline __u64 follows_cookie(const struct settings *settings,
					    const struct segment *segment, __u64 now_ms)
{
	const struct five_tuple *ends = &segment->five_tuple;
	struct handshake flow = {ends->saddr, ends->daddr, ends->sport, ends->dport,
				 segment->seq - 1};

	if (!(segment->flags & ACK))
		return 0;
	return check_cookie(&settings->secrets, &flow, segment->ack - 1, now_ms);
}

/* Whether a segment echoes the SYN-ACK's TSval, if it has timestamps. */
static __always_inline bool echoes_t0(const struct settings *settings,
				      const struct segment *segment, __u64 hash)
{
	__u32 tsecr = segment->tsecr;

	return !segment->has_timestamps || is_t0(hash, tsecr) ||
	       (settings->accepts_version_1 && tsecr && tsecr <= T0_VERSION_1_MASK);
}

/* A SYN's options, with room for what a bounded offset may reach. */
struct syn_options {
	__u8 octets[64 + 8];
	__u32 len;
	struct offer offer;
};

/* An octet of the options, wherever `off` points: the verifier needs no more than the mask. */
#define OCTET(options, off) ((options)->octets[(off) & 63])

/* Read a SYN's options; as Linux does, stop where one does not fit; the last of a kind counts.
 *
 * Global, so that it is verified once, with contents unknown: inlined, its paths multiply.
 */
__noinline int read_offer(struct syn_options *options)
{
	struct offer *offer;
	__u32 off = 0;

	if (!options)
		return 0;
	offer = &options->offer;
	for (int i = 0; i < MAX_OPTIONS_LEN; i++) {
		__u32 kind, option_len;

		asm volatile("%0 &= 63" : "+r"(off));
		kind = OCTET(options, off);
		if (off >= options->len || kind == OPTION_END)
			break;
		option_len = kind == OPTION_NOP ? 1 : OCTET(options, off + 1);
		if ((kind != OPTION_NOP && option_len < 2) || off + option_len > options->len)
			break;
		if (kind == OPTION_MSS && option_len == MSS_LEN) {
			offer->mss = OCTET(options, off + 2) << 8 | OCTET(options, off + 3);
		} else if (kind == OPTION_WSCALE && option_len == WSCALE_LEN) {
			__u8 shift = OCTET(options, off + 2);

			offer->wscale = shift > WSCALE_MAX ? WSCALE_MAX : shift;
		} else if (kind == OPTION_SACK_PERMITTED && option_len == SACK_PERMITTED_LEN) {
			offer->sack = 1;
		} else if (kind == OPTION_TIMESTAMPS && option_len == TIMESTAMPS_LEN) {
			offer->timestamps = 1;
			offer->tsval = OCTET(options, off + 2) << 24 | OCTET(options, off + 3) << 16 |
				       OCTET(options, off + 4) << 8 | OCTET(options, off + 5);
		}
		off += option_len;
	}
	return 0;
}

/* Read a SYN's options in the one layout that Linux and Android send. False: it is another. */
static __always_inline bool read_usual_offer(struct xdp_md *ctx, const struct segment *syn,
					     struct offer *offer)
{
	struct iphdr *ip = ip_at(ctx, syn->packet.off, HEADERS_LEN + 20);
	__be32 *words = (void *)ip + HEADERS_LEN;
	__u32 mss, wscale;

	if (!ip || syn->payload_off != HEADERS_LEN + 20)
		return false;
	mss = bpf_ntohl(words[0]);
	wscale = bpf_ntohl(words[4]);
	if (mss >> 16 != USUAL_MSS >> 16 ||
	    words[1] != bpf_htonl(USUAL_SACK_PERMITTED_TIMESTAMPS) ||
	    wscale >> 8 != USUAL_WSCALE >> 8)
		return false;
	wscale &= 0xff;
	offer->mss = mss;
	offer->sack = offer->timestamps = 1;
	offer->tsval = bpf_ntohl(words[2]);
	offer->wscale = wscale > WSCALE_MAX ? WSCALE_MAX : wscale;
	return true;
}

/* Read a SYN's options, whatever they are. False: there are none that can be read. */
static __always_inline bool read_other_offer(struct xdp_md *ctx, const struct segment *syn,
					     struct offer *offer)
{
	__u32 options_len = syn->payload_off - HEADERS_LEN;
	struct syn_options options = {.offer = *offer};

	if (options_len > MAX_OPTIONS_LEN)
		return false;
	if (!options_len)
		return true;
	/* Linux 6.1 forgets that this is not 0 unless it is said in its own way */
	asm volatile("%0 += -1\n%0 &= 63\n%0 += 1" : "+r"(options_len));
	if (bpf_xdp_load_bytes(ctx, syn->packet.off + HEADERS_LEN, options.octets, options_len))
		return false;
	options.len = options_len;
	read_offer(&options);
	*offer = options.offer;
	return true;
}

/* The SYN-ACK's options, in the layout that Linux sends. */
static __always_inline void write_options(struct tcp_words *made, const struct offer *accepted,
					  __u16 mss, __u8 wscale, __u32 clock)
{
	__u32 count = sizeof(struct tcphdr) / 4;

	made->words[count++] = bpf_htonl(USUAL_MSS | mss);
	if (accepted->timestamps) {
		made->words[count++] = accepted->sack ? bpf_htonl(USUAL_SACK_PERMITTED_TIMESTAMPS)
						      : bpf_htonl(USUAL_TIMESTAMPS);
		made->words[count++] = bpf_htonl(clock);
		made->words[count++] = bpf_htonl(accepted->tsval);
	} else if (accepted->sack) {
		made->words[count++] = bpf_htonl(USUAL_SACK_PERMITTED);
	}
	if (accepted->wscale != NO_WSCALE)
		made->words[count++] = bpf_htonl(USUAL_WSCALE | wscale);
	made->count = count;
	made->has_timestamps = accepted->timestamps;
}

static __always_inline __u16 tcp_checksum(const struct tcp_words *made, __be32 saddr, __be32 daddr)
{
	__u64 sum = pseudo_sum(saddr, daddr, made->count * 4);

#pragma unroll
	for (int i = 0; i < 10; i++) /* the rest is never used, and zero */
		sum += made->words[i];
	return ~folded(sum);
}

/* Turn the frame into the answer: ends exchanged, headers new. False: it cannot be. */
static __always_inline bool write_answer(struct xdp_md *ctx, const struct segment *syn,
					 const struct tcp_words *made)
{
	__u32 len = sizeof(struct iphdr) + made->count * 4;
	__u64 sum = bpf_htons(0x4500) + bpf_htons(len) + bpf_htons(0x4000) +
		    bpf_htons(64 << 8 | IPPROTO_TCP) + (__u64)syn->five_tuple.saddr +
		    syn->five_tuple.daddr;
	__u8 mac[ETH_ALEN];
	struct ethhdr *eth;
	struct iphdr *ip;
	__be32 *words;
	int growth = (int)(syn->packet.off + len) - (int)bpf_xdp_get_buff_len(ctx);

	if (growth && bpf_xdp_adjust_tail(ctx, growth))
		return false;
	ip = ip_at(ctx, syn->packet.off, sizeof(*ip));
	if (!ip)
		return false;
	*ip = (struct iphdr){
		.version = 4, .ihl = 5, .tot_len = bpf_htons(len), .frag_off = bpf_htons(0x4000),
		.ttl = 64, .protocol = IPPROTO_TCP, .check = ~folded(sum),
		.saddr = syn->five_tuple.daddr, .daddr = syn->five_tuple.saddr,
	};
	words = (void *)(ip + 1);
#pragma unroll
	for (int i = 0; i < 10; i++) {
		if (i >= made->count || (void *)(words + i + 1) > (void *)(long)ctx->data_end)
			break;
		words[i] = made->words[i];
	}
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return true;
}

/* Answer a SYN: its options as offered, as far as the service has them.
 *
 * Returns: ANSWERED_BARE where it is sent without timestamps, else what becomes of the frame.
 */
static __always_inline int answer_syn(struct xdp_md *ctx, const struct settings *settings,
				      const struct service *service, const struct segment *syn,
				      __u64 now_ms)
{
	const struct five_tuple *ends = &syn->five_tuple;
	struct handshake flow = {ends->saddr, ends->daddr, ends->sport, ends->dport, syn->seq};
	struct offer offer = {.mss = MSS_DEFAULT, .wscale = NO_WSCALE};
	struct tcp_words made = {};
	struct tcphdr *tcp = (void *)made.words;
	__u32 cookie_isn;
	__u64 hash;

	if (!read_usual_offer(ctx, syn, &offer) && !read_other_offer(ctx, syn, &offer))
		return XDP_PASS;
	offer.sack &= service->sack;
	offer.timestamps &= service->timestamps;
	hash = handshake_hash(settings->secrets.keys[0], &flow, now_ms / EPOCH_MS);
	write_options(&made, &offer, service->mss, service->wscale, make_t0(hash, now_ms));
	cookie_isn = (hash & 0xffffff) << 8 |
		     encode_offer(offer.mss, offer.sack,
				  offer.wscale == NO_WSCALE ? WSCALE_NONE : offer.wscale);
	tcp->source = ends->dport;
	tcp->dest = ends->sport;
	tcp->seq = bpf_htonl(cookie_isn);
	tcp->ack_seq = bpf_htonl(syn->seq + 1);
	tcp->doff = made.count;
	tcp->syn = tcp->ack = 1;
	tcp->window = bpf_htons(WINDOW);
	tcp->check = tcp_checksum(&made, ends->daddr, ends->saddr);
	if (!write_answer(ctx, syn, &made))
		return XDP_DROP;
	note(REASON_SYN_ANSWERED);
	return made.has_timestamps ? XDP_TX : ANSWERED_BARE;
}
