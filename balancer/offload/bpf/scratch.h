/* A copy of the first payload, in which keys are looked for and put together.
 *
 * The verifier is content with masked offsets, so every function reads through `at`; each is global
 * (not static), so that it is verified once with unknown contents, and looks the copy up by itself.
 */
#pragma once

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SCRATCH_LEN 4096
#define PAYLOAD_OFF 512 /* room before it, for a host that is to precede a path */
#define PAYLOAD_MAX 2048
#define STEPS_OF_8 ((PAYLOAD_OFF + PAYLOAD_MAX) / 8 + 1)
#define STEPS (STEPS_OF_8 + 128) /* where each that is found takes one more; beyond, go up */

/* Octets of the scratch, from `off` to `end`. */
struct part {
	__u32 off;
	__u32 end;
};

/* key: what has been found. */
struct scratch {
	__u8 octets[SCRATCH_LEN + 8];
	struct part key;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline struct scratch *get_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* Where an offset lies; masked right before use, where clang cannot take it away. */
static __always_inline __u8 *at(struct scratch *scratch, __u32 off)
{
	asm volatile("%0 &= 4095" : "+r"(off));
	return scratch->octets + off;
}

static __always_inline __u32 number_at(struct scratch *scratch, __u32 off)
{
	return bpf_ntohs(*(__be16 *)at(scratch, off));
}

#define ONES 0x0101010101010101ULL
#define TOPS 0x8080808080808080ULL

/* The top bit of each octet that is less than `limit`; only the lowest such bit is exact. */
#define BELOW(word, limit) (((word) - ONES * (limit)) & ~(word) & TOPS)
#define EQUAL(word, octet) BELOW((word) ^ ONES * (octet), 1)

/* Which octet the lowest top bit is of. Without a branch: in loops, the verifier follows each.
 *
 * (BPF has no instruction that counts zeros.) Octet n of the factor, from the top, is n.
 */
static __always_inline __u32 first_octet(__u64 tops)
{
	return ((tops & -tops) >> 7) * 0x0001020304050607ULL >> 56;
}

/* Where a request target ends: at a blank, a control, or a `stop`; `end` if it does not. */
__noinline __u32 find_target_end(struct scratch *scratch, __u32 off, __u32 end, __u8 stop)
{
	if (!scratch)
		return end;
	for (int i = 0; i < STEPS_OF_8; i++) {
		__u64 word, found;

		if (off >= end)
			break;
		word = *(__u64 *)at(scratch, off);
		found = BELOW(word, 0x21) | EQUAL(word, 0x7f) | EQUAL(word, stop);
		if (found) {
			off += first_octet(found);
			break;
		}
		off += 8;
	}
	return off < end ? off : end;
}

/* The next such octet; `end` if there is none. */
__noinline __u32 find_octet(struct scratch *scratch, __u32 off, __u32 end, __u8 octet)
{
	if (!scratch)
		return end;
	for (int i = 0; i < STEPS_OF_8; i++) {
		__u64 word, found;

		if (off >= end)
			break;
		word = *(__u64 *)at(scratch, off);
		found = EQUAL(word, octet);
		if (found) {
			off += first_octet(found);
			break;
		}
		off += 8;
	}
	return off < end ? off : end;
}

/* The top bit of each octet that is a capital letter. */
static __always_inline __u64 capitals(__u64 word)
{
	__u64 low = word & ~TOPS;

	return ~word & TOPS & ((low + ONES * (0x80 - 'A')) ^ (low + ONES * (0x7f - 'Z')));
}

/* Copy octets in lower case, the last of them first: the target may overlap them, behind.
 *
 * Up to 7 octets before the target are spoilt. Returns: where the copy ends.
 */
__noinline __u32 copy_lowered(struct scratch *scratch, __u32 target, __u32 off, __u32 end)
{
	__u32 left = end - off, target_end = target + left;

	if (!scratch)
		return target_end;
	target = target_end;
	for (int i = 0; i < STEPS_OF_8; i++) {
		__u64 word;

		if (!left)
			break;
		end -= 8;
		target -= 8;
		word = *(__u64 *)at(scratch, end);
		*(__u64 *)at(scratch, target) = word | capitals(word) >> 2;
		left = left > 8 ? left - 8 : 0;
	}
	return target_end;
}
