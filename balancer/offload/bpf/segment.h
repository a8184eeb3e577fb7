/* A TCP segment in a frame: a view over its octets.
 *
 * What is not a plain segment (IP options, fragments, bounds that do not hold) is left to the
 * portable engine, which counts it. Twin: common/wire/tcp.py:Segment
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#include "common/bpf/include/checksum.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { OPTION_END, OPTION_NOP, OPTION_MSS, OPTION_WSCALE, OPTION_SACK_PERMITTED, OPTION_SACK };
#define OPTION_TIMESTAMPS 8
#define HEADERS_LEN (sizeof(struct iphdr) + sizeof(struct tcphdr))
#define MAX_OPTIONS_LEN 40

/* ip_off: where the IP header begins in the frame. len: of the IP packet, without padding.
 * payload_off: from the IP header on. has_timestamps: in the layout of all common stacks.
 */
struct segment {
	struct five_tuple five_tuple;
	__u32 ip_off;
	__u32 len;
	__u32 payload_off;
	__u32 seq;
	__u32 ack;
	__u32 tsecr;
	__u8 flags;
	__u8 ttl;
	bool has_timestamps;
};

static __always_inline __u32 payload_len(const struct segment *segment)
{
	return segment->len - segment->payload_off;
}

/* Where the IP header begins, or 0 if the frame is not IPv4.
 *
 * A tagged frame belongs to the VLAN's own interface, where a program may be, too.
 */
static __always_inline __u32 find_ip(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return 0;
	return eth->h_proto == bpf_htons(ETH_P_IP) ? sizeof(*eth) : 0;
}

/* The headers, if `len` octets from the IP header on are at hand, else NULL. */
static __always_inline struct iphdr *ip_at(struct xdp_md *ctx, __u32 ip_off, __u32 len)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	void *ip = data + ip_off;

	return ip_off > sizeof(struct ethhdr) || ip + len > data_end ? NULL : ip;
}

/* Timestamps as common stacks lay them out; false where there may be some elsewhere. */
static __always_inline bool read_timestamps(struct xdp_md *ctx, struct segment *segment)
{
	__u32 options_len = segment->payload_off - HEADERS_LEN;
	struct iphdr *ip;
	__be32 *words;

	segment->has_timestamps = false;
	segment->tsecr = 0;
	if (!options_len)
		return true;
	ip = ip_at(ctx, segment->ip_off, HEADERS_LEN + 12);
	if (!ip || options_len < 12)
		return false;
	words = (void *)ip + HEADERS_LEN;
	if (words[0] == bpf_htonl(0x0101080a)) {
		segment->has_timestamps = true;
		segment->tsecr = bpf_ntohl(words[2]);
		return true;
	}
	/* NOP, NOP, SACK and nothing else: a client without timestamps */
	return (words[0] & bpf_htonl(0xffffff00)) == bpf_htonl(0x01010500) &&
	       (bpf_ntohl(words[0]) & 0xff) + 2 == options_len;
}

/* Whether the checksum may be one that others have yet to finish: of the pseudo-header alone.
 *
 * Such segments come from hosts on the same machine, and from interfaces that coalesce. No change
 * can be patched into those; going up completes them. One finished checksum of 65536 looks alike.
 */
static __always_inline bool may_be_unfinished(const struct iphdr *ip, const struct tcphdr *tcp)
{
	__u16 len = bpf_ntohs(ip->tot_len) - sizeof(*ip);
	__u64 sum = (__u64)ip->saddr + ip->daddr + bpf_htons(IPPROTO_TCP) + bpf_htons(len);

	return folded(sum) == tcp->check;
}

/* Whether the frame has so many octets; asking for all of its buffers takes longer. */
static __always_inline bool is_within(struct xdp_md *ctx, __u32 len)
{
	return len <= ctx->data_end - ctx->data || len <= bpf_xdp_get_buff_len(ctx);
}

/* Read a segment whose bounds all hold. */
static __always_inline bool read_segment(struct xdp_md *ctx, __u32 ip_off, struct segment *segment)
{
	struct iphdr *ip = ip_at(ctx, ip_off, HEADERS_LEN);
	struct tcphdr *tcp = (void *)(ip + 1);

	if (!ip || *(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x3fff) ||
	    ip->protocol != IPPROTO_TCP || may_be_unfinished(ip, tcp))
		return false;
	segment->ip_off = ip_off;
	segment->len = bpf_ntohs(ip->tot_len);
	segment->payload_off = sizeof(*ip) + tcp->doff * 4;
	segment->five_tuple.saddr = ip->saddr;
	segment->five_tuple.daddr = ip->daddr;
	segment->five_tuple.sport = tcp->source;
	segment->five_tuple.dport = tcp->dest;
	segment->seq = bpf_ntohl(tcp->seq);
	segment->ack = bpf_ntohl(tcp->ack_seq);
	segment->flags = ((__u8 *)tcp)[13];
	segment->ttl = ip->ttl;
	return tcp->doff >= 5 && segment->payload_off <= segment->len &&
	       is_within(ctx, ip_off + segment->len);
}

/* Whether a host on the network can have this source, and it is not the VIP (RFC 1122 §3.2.1.3). */
static __always_inline bool may_be_answered(const struct five_tuple *five_tuple)
{
	__u8 first = bpf_ntohl(five_tuple->saddr) >> 24;

	return first && first != 127 && first < 224 && five_tuple->saddr != five_tuple->daddr;
}
