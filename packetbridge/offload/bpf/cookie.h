/* Whether a first data segment follows a handshake of ours, and is for this bridge.
 *
 * Keys and clock come from packetbridge/offload/fast_maps.py:SecretsMap.
 */
#pragma once

#include "bridge.h"
#include "options.h"
#include "spent.h"

#include "common/bpf/include/guesses.h"
#include "common/bpf/include/stamps.h"

const volatile bool accepts_version_1; /* whether a cookie alone makes a handoff */

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

/* What a segment with payload proves. PROVEN: it is a handoff for this bridge; PROVEN_CHECK: and the
 * balancer's own, a health check. BAD_ECHO: its cookie
 * is good, but its timestamps prove nothing. TOO_MANY: it was not looked at, as it has nothing but a
 * cookie to show, and too many of these were wrong. SPENT: it has been one before.
 */
enum proof { NOTHING, PROVEN, PROVEN_CHECK, BAD_ECHO, TOO_MANY, SPENT };

static __always_inline bool is_proven(int proof)
{
	return proof == PROVEN || proof == PROVEN_CHECK;
}

static __always_inline __u32 reason_of(int proof)
{
	return proof == SPENT	 ? REASON_COOKIE_SPENT
	       : proof == BAD_ECHO ? REASON_BAD_ECHO
				   : REASON_GUESSES_LIMITED;
}

static __always_inline __u64 unix_ms(const struct cookie_settings *known)
{
	return (bpf_ktime_get_boot_ns() + known->clock_offset_ns) / 1000000;
}

/* Twin: packetbridge/modes/splice.py:Splice._proof_of */
static __noinline int proof_of(struct __sk_buff *skb, const struct service *service,
			       const struct segment *segment)
{
	struct handshake flow = {
		segment->five_tuple.saddr, service->vip, segment->five_tuple.sport,
		service->vip_port, segment->seq - 1,
	};
	struct timestamps timestamps = read_timestamps(skb, segment);
	bool is_guess = !timestamps.found || accepts_version_1;
	__u32 zero = 0, dscp = segment->packet.tos >> 2, told;
	const struct cookie_settings *known = bpf_map_lookup_elem(&secrets, &zero);
	__u64 now_ms, hash;

	if (!known)
		return NOTHING;
	now_ms = unix_ms(known);
	if (is_guess && !may_guess(dscp, now_ms))
		return TOO_MANY;
	hash = check_cookie(&known->secrets, &flow, segment->ack - 1, now_ms);
	if (!hash) {
		if (is_guess)
			note_guess(dscp, now_ms);
		return NOTHING;
	}
	told = timestamps.tsecr & STAMP_MAC_MASK;
	if (!timestamps.found || told == handoff_mac(hash, service->bridge) ||
	    (accepts_version_1 && !told))
		return is_spent(hash) ? SPENT
		       : timestamps.found && timestamps.tsval == check_mark(hash) ? PROVEN_CHECK
										  : PROVEN;
	return BAD_ECHO;
}

/* A connection has been opened by this cookie. */
static __noinline int spend(const struct handshake *flow, __u32 cookie_isn)
{
	__u32 zero = 0;
	const struct cookie_settings *known = bpf_map_lookup_elem(&secrets, &zero);
	__u64 hash = known ? check_cookie(&known->secrets, flow, cookie_isn, unix_ms(known)) : 0;

	if (hash)
		note_spent(hash);
	return 0;
}
