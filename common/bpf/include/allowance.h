/* What may go up to the portable engine, and how much of it: as many packets as that can bear.
 *
 * A packet goes up for a reason that it has in common with others. Each such class has a budget of its
 * own, so that a flood takes nothing from other classes: strangers cannot make it up to what the first
 * segments of long requests have. Budgets are the host's: all processors count in one place, by tenths
 * of a second, whatever the kernel's tick is.
 *
 * Python sets the budgets: common/bpf/allowance.py.
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "common/bpf/include/verdict.h"

#define TENTH_MS 100
#define REST 4 /* of a budget, one in so many is for those who have not had their share */

/* In the order of the reasons REASON_LIMITED_*, by which what exceeds a budget is counted. */
enum way_up {
	UP_FLOW, /* of a flow that is known, but unusual */
	UP_HELD, /* of a flow whose first segments wait for more, or went up just now */
	UP_FIRST, /* a first payload, or what else follows a cookie */
	UP_UNFINISHED, /* the same of a network that has left many unfinished */
	UP_TAKEOVER, /* its echo names a backend, and no more is known */
	UP_NO_WAY, /* its backend cannot be reached from a program */
	UP_UNKNOWN, /* nothing vouches for it */
	UP_ODD, /* nor for this, whose options or checksum are unusual */
	UP_IP, /* fragments, and packets with IP options */
	UP_ICMP, /* errors */
	WAYS_UP,
};

SHARE_TYPE(way_up, enum way_up);

/* used: of the budget, in that tenth of a second. A cache line for each. */
struct allowance {
	__u64 tenth;
	__u64 used;
	__u64 padding[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WAYS_UP);
	__type(key, __u32);
	__type(value, struct allowance);
} allowances SEC(".maps");

const volatile __u32 budgets[WAYS_UP]; /* packets in a tenth of a second */
const volatile __u32 busy_budgets[WAYS_UP]; /* while the portable engine is busy */
volatile __u32 is_busy; /* written by the daemon */
const volatile __u32 tick_length; /* of the kernel's tick, in 2^-20 ms */

static __always_inline __u64 current_tenth(void)
{
	return (bpf_jiffies64() * tick_length >> 20) / TENTH_MS;
}

/* Whether one more of a class may; if not, it has been counted. Each program calls it in one place.
 *
 * has_had_share: whether it has to leave the rest of the budget to others.
 */
static __always_inline bool may_go_up(__u32 way, bool has_had_share)
{
	struct allowance *allowance;
	__u64 tenth, before;
	__u32 most, busy;

	if (way >= WAYS_UP)
		return false;
	most = budgets[way]; /* both at once: Linux 6.1 soon forgets the bound */
	busy = busy_budgets[way];
	if (is_busy)
		most = busy;
	if (has_had_share)
		most -= most / REST;
	allowance = bpf_map_lookup_elem(&allowances, &way);
	if (!allowance)
		return false;
	tenth = current_tenth();
	before = *(volatile __u64 *)&allowance->tenth;
	if (before != tenth &&
	    __sync_val_compare_and_swap(&allowance->tenth, before, tenth) == before)
		*(volatile __u64 *)&allowance->used = 0;
	/* looked at first, since processors wait for each other where they add */
	if (*(volatile __u64 *)&allowance->used < most &&
	    __sync_fetch_and_add(&allowance->used, 1) < most)
		return true;
	count(REASON_LIMITED_FLOW + way);
	return false;
}
