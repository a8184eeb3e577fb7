/* The ways up to the portable engine. */
#pragma once

#include <stddef.h>

#include "bridge.h"

#include "common/bpf/include/allowance.h"
#include "common/bpf/include/icmp.h"

/* Leave a packet of that class (enum way_up) to the portable engine, or drop it. */
static __noinline int up(__u32 way)
{
	return may_go_up(way, false) ? NEXT : DROP;
}

/* A tagged packet that is no plain segment for its service's port. What would not come to the portable
 * engine is the host's own. Twin: packetbridge/rules.py:rules
 */
static __noinline int on_unusual(struct __sk_buff *skb, __be16 vip_port)
{
	struct iphdr *ip = ip_header(skb, sizeof(*ip));
	struct {
		__be16 source;
		__be16 dest;
	} ports;
	__be16 fragment;
	bool has_options;

	if (!ip)
		return NEXT;
	fragment = ip->frag_off & bpf_htons(MORE_FRAGMENTS | FRAGMENT_OFFSET);
	has_options = ip->ihl != 5;
	if (fragment & bpf_htons(FRAGMENT_OFFSET)) /* whose port is in another one */
		return up(UP_IP);
	if (bpf_skb_load_bytes(skb, IP_OFF + ip->ihl * 4, &ports, sizeof(ports)) ||
	    ports.dest != vip_port)
		return NEXT;
	return up(has_options || fragment ? UP_IP : UP_ODD);
}

/* The same of ICMP. */
static __noinline int icmp_up(struct __sk_buff *skb)
{
	struct iphdr *ip = ip_header(skb, sizeof(*ip));
	__u8 type;

	if (!ip || ip->frag_off & bpf_htons(FRAGMENT_OFFSET) ||
	    bpf_skb_load_bytes(skb, IP_OFF + ip->ihl * 4, &type, sizeof(type)))
		return NEXT;
	return is_icmp_error(type) ? up(UP_ICMP) : NEXT;
}

/* A packet that is shorter than the headers of IP and TCP. */
static __noinline int on_short(struct __sk_buff *skb)
{
	struct iphdr *ip = pulled_ip_header(skb, sizeof(*ip));
	struct service *service = ip ? service_of(ip) : NULL;

	if (!service)
		return NEXT;
	if (ip->protocol == IPPROTO_ICMP)
		return icmp_up(skb);
	return ip->protocol == IPPROTO_TCP ? on_unusual(skb, service->vip_port) : NEXT;
}
