/* Durations by their size: by powers of two of a millisecond.
 *
 * Twin: common/histogram.py
 */
#pragma once

#include <linux/bpf.h>

#include "common/bpf/include/constants.h"

struct histogram {
	__u64 counts[HISTOGRAM_BOUNDS + 1];
	__u64 sum_ms;
};

static __always_inline __u32 size_of_ms(__u32 duration_ms)
{
	__u32 place = 0;

#pragma unroll
	for (int power = 0; power < HISTOGRAM_BOUNDS; power++)
		place += duration_ms > 1U << power;
	return place;
}

/* One more, where several processors may write at once. */
static __always_inline void note_duration(struct histogram *histogram, __u32 duration_ms)
{
	__u32 place = size_of_ms(duration_ms);

	asm volatile("" : "+r"(place)); /* or clang leaves the check out that the verifier wants */
	if (place <= HISTOGRAM_BOUNDS)
		__sync_fetch_and_add(&histogram->counts[place], 1);
	__sync_fetch_and_add(&histogram->sum_ms, duration_ms);
}
