/* Why a packet was passed, sent or dropped, and a counter for each reason.
 *
 * Twin: common/verdict.py, which has them all; Python reads their numbers here (common/bpf/reasons.py).
 */
#pragma once

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "common/bpf/include/share.h"

enum reason {
	REASON_NOT_OURS,
	REASON_SYN_ANSWERED,
	REASON_FIN_ANSWERED,
	REASON_HELD,
	REASON_ACKNOWLEDGED,
	REASON_HANDOFF,
	REASON_FORWARDED,
	REASON_TAKEOVER,
	REASON_REPLAYED,
	REASON_OPENED,
	REASON_CHECK,
	REASON_TO_SERVER,
	REASON_TO_CLIENT,
	REASON_PROBED,
	REASON_ICMP_FORWARDED,
	REASON_RESET,
	REASON_MALFORMED_IP,
	REASON_MALFORMED_TCP,
	REASON_MALFORMED_ICMP,
	REASON_BAD_SOURCE,
	REASON_BAD_FLAGS,
	REASON_BAD_CHECKSUM,
	REASON_FRAGMENT,
	REASON_IP_OPTIONS,
	REASON_TTL_EXPIRED,
	REASON_TRUNCATED,
	REASON_HANDSHAKE_ACK,
	REASON_UNKNOWN_FLOW,
	REASON_BAD_ECHO,
	REASON_GUESSES_LIMITED,
	REASON_COOKIE_SPENT,
	REASON_TAKEOVER_LIMITED,
	REASON_LIMITED_FLOW,
	REASON_LIMITED_HELD,
	REASON_LIMITED_FIRST,
	REASON_LIMITED_UNFINISHED,
	REASON_LIMITED_TAKEOVER,
	REASON_LIMITED_NO_WAY,
	REASON_LIMITED_UNKNOWN,
	REASON_LIMITED_ODD,
	REASON_LIMITED_IP,
	REASON_LIMITED_ICMP,
	REASON_RESET_UNANSWERED,
	REASON_TABLE_FULL,
	REASON_NO_BACKEND,
	REASON_REPLAY_PENDING,
	REASON_REPLAY_DONE,
	REASON_FLOW_CLOSED,
	REASON_INTERNAL_ERROR,
	REASONS,
};

SHARE_TYPE(reason, enum reason);

/* name: of the enumerator, so that it is known whatever number another version gives to it. */
struct counter {
	__u64 packets;
	char name[24];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, struct counter);
} reasons SEC(".maps");

static __always_inline void count(__u32 reason)
{
	struct counter *counter = bpf_map_lookup_elem(&reasons, &reason);

	if (counter)
		counter->packets++;
}
