/* How long handshakes take, and backends to answer: looked at once in a flow's life.
 *
 * Twin: balancer/offload/durations.py
 */
#pragma once

#include "maps.h"

#include "common/bpf/include/histogram.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct histogram);
} handshakes SEC(".maps");

/* One for all processors: there are thousands of backends. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES * MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct histogram);
} first_acks SEC(".maps");

/* A client's first payload echoes T0. */
static __noinline int note_handshake(__u32 service, __u32 tsecr, __u64 now_ms)
{
	struct histogram *histogram = bpf_map_lookup_elem(&handshakes, &service);

	if (histogram)
		note_duration(histogram, ((__u32)now_ms - tsecr) & CLOCK_MASK);
	return 0;
}

/* A client acknowledges something for the first time since the handoff. */
static __always_inline void note_first_ack(__u32 service, __u32 backend, __u32 age_ms)
{
	__u32 place = place_of(service, backend);
	struct histogram *histogram = bpf_map_lookup_elem(&first_acks, &place);

	if (histogram)
		note_duration(histogram, age_ms);
}
