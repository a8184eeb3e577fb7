/* What both programs of the bridge start from: services by DSCP, and the segment of an skb.
 *
 * A service's DSCP is unique on a bridge, so it is the index of an array. Whatever is unusual
 * (IP options, fragments, headers out of bounds) is left to the portable engine, which counts it.
 */
#pragma once

#include <stddef.h>

#include "common/bpf/include/lifetime.h"
#include "common/bpf/include/tcp.h"
#include "common/bpf/include/verdict.h"

#define NEXT -1 /* TCX_NEXT and TC_ACT_UNSPEC: whoever comes after us decides */
#define DROP 2 /* TC_ACT_SHOT */
#define REQUEUED 0x5ce1 /* in tc_index: the packet has been here before */
#define MAX_DSCP 64
#define IP_OFF ETH_HLEN
#define TCP_OFF (IP_OFF + sizeof(struct iphdr))

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

/* For headers that a check has shown to be at hand: without an end, so that the readers' checks of
 * bounds cost nothing. Should one read further than that, the verifier refuses it.
 */
static __always_inline struct cursor cursor_of(struct iphdr *ip)
{
	return (struct cursor){ip, (void *)~0UL};
}

/* Read the segment of a packet. False: it is unusual, or its headers do not hold.
 *
 * ip: with HEADERS_LEN octets at hand.
 */
static __always_inline bool read_frame(const struct __sk_buff *skb, struct iphdr *ip,
				       struct segment *segment)
{
	struct cursor cursor = cursor_of(ip);

	*segment = (struct segment){.packet = {.off = IP_OFF}};
	if (!read_ipv4(&cursor, &segment->packet))
		return false;
	if (!segment->packet.len && skb->gso_size)
		segment->packet.len = skb->len - IP_OFF; /* coalesced: more than 16 bits can say */
	segment->five_tuple.saddr = ip->saddr;
	segment->five_tuple.daddr = ip->daddr;
	return read_tcp(&cursor, segment) && segment->packet.len <= skb->len - IP_OFF;
}

static __always_inline bool has_payload(const struct segment *segment)
{
	return payload_len(segment);
}

/* A new destination, the tag taken off, ECN bits kept, one hop more. */
static __always_inline void rewrite(struct iphdr *ip, __be32 destination)
{
	rewrite_ipv4(ip, destination, ip->tos & 3);
}

/* Let the packet come in once more, behind those that wait. */
static __always_inline int requeue(struct __sk_buff *skb)
{
	skb->tc_index = REQUEUED;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}
