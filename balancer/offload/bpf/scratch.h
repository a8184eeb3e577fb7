/* A copy of the first payload, in which keys are looked for and put together.
 *
 * The verifier is content with masked offsets, so every function reads through `at`; each is global
 * (not static), so that it is verified once with unknown contents, and looks the copy up by itself.
 */
#pragma once

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define SCRATCH_LEN 4096
#define PAYLOAD_OFF 256 /* room before it, for a host that is to precede a path */
#define PAYLOAD_MAX 2048
#define STEPS_OF_8 ((PAYLOAD_OFF + PAYLOAD_MAX) / 8 + 1)

struct scratch {
	__u8 octets[SCRATCH_LEN + 8];
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
	return *at(scratch, off) << 8 | *at(scratch, off + 1);
}

#define ONES 0x0101010101010101ULL
#define TOPS 0x8080808080808080ULL

/* The top bit of each octet that is less than `limit`; only the lowest such bit is exact. */
#define BELOW(word, limit) (((word) - ONES * (limit)) & ~(word) & TOPS)
#define EQUAL(word, octet) BELOW((word) ^ ONES * (octet), 1)

/* Which octet the lowest top bit is of. (BPF has no instruction that counts zeros.) */
static __always_inline __u32 first_octet(__u64 tops)
{
	__u32 half = tops, octet = 0;

	if (!half) {
		half = tops >> 32;
		octet = 4;
	}
	if (!(half & 0xffff)) {
		half >>= 16;
		octet += 2;
	}
	return octet + !(half & 0xff);
}

/* Where a request target ends: at a blank, a control, or a `stop`; `end` if it does not. */
__noinline __u32 find_target_end(__u32 off, __u32 end, __u8 stop)
{
	struct scratch *scratch = get_scratch();

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

/* The next line feed; `end` if there is none. */
__noinline __u32 find_line_end(__u32 off, __u32 end)
{
	struct scratch *scratch = get_scratch();

	if (!scratch)
		return end;
	for (int i = 0; i < STEPS_OF_8; i++) {
		__u64 word, found;

		if (off >= end)
			break;
		word = *(__u64 *)at(scratch, off);
		found = EQUAL(word, '\n');
		if (found) {
			off += first_octet(found);
			break;
		}
		off += 8;
	}
	return off < end ? off : end;
}

static __always_inline __u8 lowered(__u8 octet)
{
	return octet >= 'A' && octet <= 'Z' ? octet | 0x20 : octet;
}

/* Copy octets in lower case; source and target may be the same. Returns: where the copy ends. */
__noinline __u32 copy_lowered(__u32 target, __u32 off, __u32 end)
{
	struct scratch *scratch = get_scratch();

	if (!scratch)
		return target;
	for (int i = 0; i < PAYLOAD_OFF; i++) {
		if (off >= end)
			break;
		*at(scratch, target++) = lowered(*at(scratch, off++));
	}
	return target;
}
