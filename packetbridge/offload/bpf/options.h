/* The timestamps option of a segment, wherever it stands (RFC 7323 §3.2).
 *
 * Twin: common/wire/options.py:timestamps_off
 */
#pragma once

#include "bridge.h"

/* In the layout that all common stacks send after the handshake. */
static __always_inline struct timestamps usual_timestamps(const struct __sk_buff *skb,
							  const struct segment *segment)
{
	return read_usual_timestamps(data_of(skb) + IP_OFF + HEADERS_LEN, data_end_of(skb),
				     segment->payload_off - HEADERS_LEN);
}

/* With room for as many as the verifier believes that there are. */
struct option_octets {
	__u8 at[64];
};

/* All options of a segment. Returns: how many octets they are, 0 if there are none. */
static __always_inline __u32 read_options(struct __sk_buff *skb, const struct segment *segment,
					  struct option_octets *octets)
{
	__u32 len = segment->payload_off - HEADERS_LEN, bounded = len;

	if (!len || len > MAX_OPTIONS_LEN)
		return 0;
	/* 1..64, said where the verifier of 6.1 sees it */
	asm volatile("%0 += -1; %0 &= 63; %0 += 1" : "+r"(bounded));
	return bpf_skb_load_bytes(skb, IP_OFF + HEADERS_LEN, octets->at, bounded) ? 0 : len;
}

/* Where the first option of that kind and length begins, or -1.
 *
 * Global, so that the verifier looks at it once. It goes octet by octet and waits for the next
 * option to begin, since it would follow every way of jumping from one to the next.
 */
__noinline int option_off(const struct option_octets *octets, __u32 len, __u32 wanted,
			  __u32 wanted_len)
{
	__u32 next = 0;

	if (!octets || len > MAX_OPTIONS_LEN)
		return -1;
	for (__u32 off = 0; off < MAX_OPTIONS_LEN - 1; off++) {
		__u32 kind = octets->at[off], option_len = octets->at[off + 1];

		if (off != next)
			continue;
		next = off + 1;
		if (kind == OPTION_NOP)
			continue;
		if (kind == OPTION_END || option_len < 2 || off + option_len > len)
			break;
		if (kind == wanted && option_len == wanted_len)
			return off;
		next = off + option_len;
		asm volatile("%0 &= 63" : "+r"(next)); /* one range, so that states are alike */
	}
	return -1;
}

/* Where a segment's TSval stands in the frame; -1: nowhere.
 *
 * With a frame of its own, so that its copy of the options does not lie below other calls.
 */
static __noinline int tsval_off(struct __sk_buff *skb, const struct segment *segment)
{
	struct option_octets octets = {};
	__u32 len;
	int off;

	if (usual_timestamps(skb, segment).found)
		return IP_OFF + HEADERS_LEN + 4;
	len = read_options(skb, segment, &octets);
	off = len ? option_off(&octets, len, OPTION_TIMESTAMPS, TIMESTAMPS_LEN) : -1;
	return off < 0 ? -1 : (int)(IP_OFF + HEADERS_LEN) + off + 2;
}

/* A segment's timestamps. */
static __always_inline struct timestamps read_timestamps(struct __sk_buff *skb,
							 const struct segment *segment)
{
	struct timestamps timestamps = usual_timestamps(skb, segment);
	__be32 values[2];
	int off;

	if (timestamps.found)
		return timestamps;
	off = tsval_off(skb, segment);
	if (off < 0 || bpf_skb_load_bytes(skb, off, values, sizeof(values)))
		return timestamps;
	timestamps.found = true;
	timestamps.tsval = bpf_ntohl(values[0]);
	timestamps.tsecr = bpf_ntohl(values[1]);
	return timestamps;
}
