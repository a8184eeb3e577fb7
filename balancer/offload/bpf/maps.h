/* What the balancer's program knows, and what it shares with the daemon.
 *
 * The daemon reads these layouts, and the names of enumerators, from the object's BTF.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "balancer/offload/bpf/constants.h"
#include "common/bpf/include/guesses.h"
#include "common/bpf/include/lifetime.h"
#include "common/bpf/include/stamps.h"
#include "common/bpf/include/tcp.h"
#include "common/bpf/include/verdict.h"

#define MAX_HELD 65536
#define MAX_STATES (STATE_MASK + 1)

/* base_ms: since the boot, when the kernel's tick was base_tick. tick_ms: of 2^-20 ms.
 * clock_offset_ms: unix time − time since the boot.
 * id_shift: balancer/modes/split/takeover.py. timeouts_ms: by state. flow_seed: of the flow table.
 */
struct settings {
	struct secrets secrets;
	__u64 base_ms;
	__u32 base_tick;
	__u32 tick_ms;
	__u64 clock_offset_ms;
	__u64 timeouts_ms[MAX_STATES];
	__u64 takeover_rate;
	__u32 id_shift;
	__u32 accepts_version_1;
	__u64 flow_seed;
};

struct service_key {
	__be32 vip;
	__be16 port;
	__u16 padding;
};

/* What a service offers its clients. number: its place in arrays. */
struct service {
	__u32 number;
	__u16 mss;
	__u8 wscale;
	__u8 sack;
	__u8 timestamps;
	__u8 padding[3];
};

/* A backend and how to get there. index 0: the way is not known yet, packets go up. is_here: it is
 * where packets come in, as the daemon says: ingress_ifindex may be that of a bond's slave.
 */
struct backend {
	__be32 address;
	__u32 index;
	__u32 mtu;
	__u8 is_configured;
	__u8 dscp;
	__u8 destination[ETH_ALEN];
	__u8 source[ETH_ALEN];
	__u8 is_here;
	__u8 padding[5];
};

struct traffic {
	__u64 packets;
	__u64 octets;
	__u64 handoffs;
	__u64 unanswered;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

/* The number of each service that has one, configured or not; the daemon's alone.
 * Twin: balancer/offload/numbers.py
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__type(key, struct service_key);
	__type(value, __u32);
} service_numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES * MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* Flows of which the portable engine holds segments: all of theirs go up. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_HELD);
	__type(key, struct five_tuple);
	__type(value, __u8);
} held SEC(".maps");

volatile __u32 held_count; /* written by the daemon: with 0, nobody need look into `held` */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_SERVICES * MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct traffic);
} traffic SEC(".maps");

/* In test runs the clock stands still, and what is decided can be asked for. */
const volatile bool in_test;
volatile __u64 test_ms;
__u32 last_reason; /* of the last packet that did not go up */

const volatile bool is_traced; /* trace.h */
const volatile bool is_watched; /* is_traced or in_test */

static __always_inline struct settings *get_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings_map, &zero);
}

/* Time since the boot in ms, which nobody sets. Ticks are enough, and take no time. */
static __always_inline __u64 clock_ms(const struct settings *settings)
{
	__u32 ticks = (__u32)bpf_jiffies64() - settings->base_tick;

	if (in_test)
		return test_ms;
	return settings->base_ms + ((__u64)ticks * settings->tick_ms >> 20);
}

/* Of a time since the boot, what hosts agree on: for handshakes alone. */
static __always_inline __u64 unix_ms(const struct settings *settings, __u64 now_ms)
{
	return now_ms + settings->clock_offset_ms;
}

static __always_inline __u32 place_of(__u32 service, __u32 backend)
{
	return service * MAX_BACKENDS + backend;
}

/* A service's backend by its id, or NULL if it has none of that id. */
static __always_inline struct backend *find_backend(__u32 service, __u32 id)
{
	__u32 place = place_of(service, id);
	struct backend *backend;

	if (!id || id >= MAX_BACKENDS)
		return NULL;
	backend = bpf_map_lookup_elem(&backends, &place);
	return backend && backend->is_configured ? backend : NULL;
}
