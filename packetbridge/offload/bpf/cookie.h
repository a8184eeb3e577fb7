/* Whether a first data segment follows a handshake of ours.
 *
 * Keys and clock come from packetbridge/offload/fast_maps.py:SecretsMap.
 */
#pragma once

#include "bridge.h"

#include "common/bpf/include/cookie.h"

/* clock_offset_ns: unix time − time since the boot. */
struct cookie_settings {
	struct secrets secrets;
	__u64 clock_offset_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cookie_settings);
} secrets SEC(".maps");

/* Whether a cookie is ours, made for this flow in this epoch or a neighbouring one. */
static __always_inline bool is_ours(const struct handshake *flow, __u32 cookie_isn)
{
	__u32 zero = 0;
	const struct cookie_settings *known = bpf_map_lookup_elem(&secrets, &zero);
	__u64 now_ns;

	if (!known)
		return false;
	now_ns = bpf_ktime_get_boot_ns() + known->clock_offset_ns;
	return cookie_holds(&known->secrets, flow, cookie_isn, now_ns / (EPOCH_MS * 1000000ULL));
}
