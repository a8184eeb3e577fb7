/* Packets by what became of them.
 *
 * Twin: packetbridge/fastmaps.py:REASONS; the names are those of common/verdict.py
 */
#pragma once

#include "bridge.h"

enum reason { OPENED, TO_SERVER, TO_CLIENT, ICMP_FORWARDED, UNKNOWN_FLOW, REASONS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);

	if (counter)
		++*counter;
}
