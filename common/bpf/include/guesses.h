/* How many guesses at a handshake a service bears: those that 24 bits alone stand against.
 *
 * Twin: common/flow/guesses.py
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "common/bpf/include/constants.h"

#define GUESSED_SERVICES 64 /* as many as either program has */

const volatile __u32 max_guesses = MAX_GUESSES; /* in a period; tests have more */

/* Of a service. period: the last one in which a guess failed. */
struct guesses {
	__u64 period;
	__u64 failed;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GUESSED_SERVICES);
	__type(key, __u32);
	__type(value, struct guesses);
} guesses SEC(".maps");

static __always_inline bool may_guess(__u32 service, __u64 now_ms)
{
	struct guesses *of_service = bpf_map_lookup_elem(&guesses, &service);

	return of_service && (of_service->failed < max_guesses ||
			      of_service->period != now_ms / GUESS_PERIOD_MS);
}

/* One has failed. Where CPUs race at the turn of a period, a few are not counted. */
static __always_inline void note_guess(__u32 service, __u64 now_ms)
{
	struct guesses *of_service = bpf_map_lookup_elem(&guesses, &service);
	__u64 period = now_ms / GUESS_PERIOD_MS;

	if (!of_service)
		return;
	if (of_service->period != period) {
		of_service->period = period;
		of_service->failed = 0;
	}
	__sync_fetch_and_add(&of_service->failed, 1);
}
