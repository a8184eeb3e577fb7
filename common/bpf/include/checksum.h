/* The Internet checksum, patched in place of a change (RFC 1624 §3, eqn. 3).
 *
 * Sums are over words as they lie in memory, whatever the host's byte order (RFC 1071 §2 (B)).
 * Twin: common/wire/checksum.py
 */
#pragma once

#include <linux/types.h>

/* A sum after 32 bits of it, or 16, have changed. */
static __always_inline __u64 changed(__u64 sum, __u32 old, __u32 new)
{
	return sum + (__u32)~old + new;
}

/* Fold carries back; never turns non-zero into zero. */
static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The checksum `field` after the sum of what has changed. */
static __always_inline __u16 patched(__u16 field, __u64 changes)
{
	return ~folded((__u16)~field + changes);
}
