/* What the networks of clients, /24 each, take of the portable engine.
 *
 * Whoever completes handshakes has the addresses that it uses, so its network can be held to a share.
 * Shares are of what is scarce alone: a class of packets is anybody's until three quarters of its
 * budget are used, and the rest is for networks that have had less than an eighth of it.
 */
#pragma once

#include "maps.h"

#include "common/bpf/include/allowance.h"

#define MAX_NETWORKS 4096
#define NETWORKS_BITS 12
#define NETWORK_SHARE 8 /* of a budget, one in so many is a network's */
#define MAX_OWED 256 /* first payloads of a network that wait at once */

/* owed: first payloads that have become no flow; halved with time. owed_time: in 1.6 s.
 * used: packets in that tenth of a second, of all classes in which networks have shares.
 */
struct network {
	__s32 owed;
	__u32 owed_time;
	__u32 tenth;
	__u32 used;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

/* A source's network. seed: secret, so that nobody chooses whom to share with. */
static __always_inline struct network *network_of(__be32 saddr, __u64 seed)
{
	__u64 number = bpf_ntohl(saddr) >> 8;
	__u32 place = (number ^ seed) * 0x9e3779b97f4a7c15ULL >> (64 - NETWORKS_BITS);

	return bpf_map_lookup_elem(&networks, &place);
}

/* A packet of a class is about to go up. Returns: whether its network has had its share already. */
static __always_inline bool has_had_share(struct network *network, __u32 way)
{
	__u32 tenth, share;

	if (way >= WAYS_UP)
		return false;
	share = budgets[way] / NETWORK_SHARE; /* at once: Linux 6.1 soon forgets the bound */
	tenth = current_tenth();
	if (network->tenth != tenth) {
		network->tenth = tenth;
		network->used = 0;
	}
	return __sync_fetch_and_add(&network->used, 1) >= share;
}
