/* What both programs of the bridge start from: services by DSCP, and a view of a tagged segment.
 *
 * A service's DSCP is unique on a bridge, so it is the index of an array. Whatever is unusual
 * (IP options, fragments, headers out of bounds) is left to the portable engine, which counts it.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/bpf/include/checksum.h"
#include "common/bpf/include/constants.h"
#include "common/bpf/include/verdict.h"

#define NEXT -1 /* TCX_NEXT and TC_ACT_UNSPEC: whoever comes after us decides */
#define DROP 2 /* TC_ACT_SHOT */
#define MAX_DSCP 64
#define IP_OFF ETH_HLEN
#define TCP_OFF (IP_OFF + sizeof(struct iphdr))
#define HEADERS_LEN (sizeof(struct iphdr) + sizeof(struct tcphdr))

/* Twin: packetbridge/modes/translate.py:ServiceState */
struct service {
	__be32 bridge; /* the address that balancers send to; 0: no service has this DSCP */
	__be32 vip;
	__be32 server;
	__be16 vip_port;
	__be16 server_port;
	__u8 wscale; /* the shift that the balancer's SYN-ACK offers */
	__u8 has_refused; /* set here: some flows of it are the portable engine's */
	__u8 padding[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DSCP);
	__type(key, __u32);
	__type(value, struct service);
} services SEC(".maps");

/* A segment, in host byte order but for addresses and ports.
 *
 * len: of the IP packet. payload_off: from the IP header on. flags: FIN..CWR, as on the wire.
 */
struct segment {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u16 payload_off;
	__u32 len;
	__u32 seq;
	__u32 ack;
	__u8 flags;
};

/* Where the packet begins and ends. By hand: clang 14 else moves these pointers through 32-bit
 * registers, and the verifier then takes them for numbers.
 */
static __always_inline void *data_of(const struct __sk_buff *skb)
{
	void *data;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(data) : "r"(skb), "i"(offsetof(struct __sk_buff, data)));
	return data;
}

static __always_inline void *data_end_of(const struct __sk_buff *skb)
{
	void *data_end;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(data_end) : "r"(skb), "i"(offsetof(struct __sk_buff, data_end)));
	return data_end;
}

/* The IP header, if `len` octets from it on are at hand, else NULL. */
static __always_inline struct iphdr *ip_header(struct __sk_buff *skb, __u32 len)
{
	void *data = data_of(skb), *data_end = data_end_of(skb);

	return data + IP_OFF + len > data_end ? NULL : data + IP_OFF;
}

/* As ip_header, with octets that lie in pages brought to hand. */
static __always_inline struct iphdr *pulled_ip_header(struct __sk_buff *skb, __u32 len)
{
	struct iphdr *ip = ip_header(skb, len);

	if (ip || skb->len < IP_OFF + len || bpf_skb_pull_data(skb, IP_OFF + len))
		return ip;
	return ip_header(skb, len);
}

/* The service whose tag and bridge address a packet has, or NULL. */
static __always_inline struct service *service_of(const struct iphdr *ip)
{
	__u32 dscp = ip->tos >> 2;
	struct service *service = bpf_map_lookup_elem(&services, &dscp);

	return service && service->bridge && service->bridge == ip->daddr ? service : NULL;
}

static __always_inline bool is_whole(const struct iphdr *ip)
{
	return ip->ihl == 5 && ip->version == 4 && !(ip->frag_off & bpf_htons(0x3fff));
}

/* False: the headers do not hold. ip: with HEADERS_LEN octets at hand. */
static __always_inline bool read_segment(const struct __sk_buff *skb, const struct iphdr *ip,
					 struct segment *segment)
{
	const struct tcphdr *tcp = (const void *)(ip + 1);
	__u32 len = bpf_ntohs(ip->tot_len);

	if (!is_whole(ip))
		return false;
	if (!len && skb->gso_size)
		len = skb->len - IP_OFF; /* coalesced to more than 16 bits can say */
	segment->len = len;
	segment->src = ip->saddr;
	segment->dst = ip->daddr;
	segment->sport = tcp->source;
	segment->dport = tcp->dest;
	segment->payload_off = sizeof(*ip) + tcp->doff * 4;
	segment->seq = bpf_ntohl(tcp->seq);
	segment->ack = bpf_ntohl(tcp->ack_seq);
	segment->flags = ((const __u8 *)tcp)[13];
	return tcp->doff >= 5 && segment->payload_off <= segment->len &&
	       segment->len <= skb->len - IP_OFF;
}

static __always_inline bool has_payload(const struct segment *segment)
{
	return segment->len > segment->payload_off;
}

/* A new destination, the tag taken off, ECN bits kept, one hop more.
 *
 * Twin: common/wire/ipv4.py:Rewrite
 */
static __always_inline void rewrite(struct iphdr *ip, __be32 destination)
{
	__u8 tos = ip->tos & 3, ttl = ip->ttl - 1;
	__u64 sum = (__u16)~ip->check;

	sum = changed(sum, ip->daddr, destination);
	sum = changed(sum, bpf_htons(ip->tos), bpf_htons(tos));
	sum = changed(sum, bpf_htons(ip->ttl << 8), bpf_htons(ttl << 8));
	ip->daddr = destination;
	ip->tos = tos;
	ip->ttl = ttl;
	ip->check = ~folded(sum);
}
