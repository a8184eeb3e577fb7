/* How many packets of unknown flows may go up to the portable engine: as many as it can bear.
 *
 * Without a bound a flood of them takes a processor from real traffic.
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#define PERIOD_JIFFIES 256 /* a second, or a quarter of one */

struct allowance {
	__u64 period;
	__u64 used;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct allowance);
} allowances SEC(".maps");

/* Whether one more may. most: in a period, on each CPU. */
static __always_inline bool may_go_up(__u32 most)
{
	__u32 zero = 0;
	struct allowance *allowance = bpf_map_lookup_elem(&allowances, &zero);
	__u64 period = bpf_jiffies64() / PERIOD_JIFFIES;

	if (!allowance)
		return false;
	if (allowance->period != period) {
		allowance->period = period;
		allowance->used = 0;
	}
	return allowance->used++ < most;
}
