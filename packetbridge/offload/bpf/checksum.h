/* TCP checksums of packets in every state that the kernel has them in.
 *
 * ip_summed says what the checksum field means (include/linux/skbuff.h): all of it; only the
 * pseudo-header's sum, for the card to complete; or all of it, beside a sum over the whole packet
 * that the kernel keeps. Only helpers can patch the latter. A program can read ip_summed itself
 * from Linux 6.2 on; before, helpers patch everything, at 25 ns each.
 */
#pragma once

#include "bridge.h"
#include "kernel.h"

#define CHECK_OFF (TCP_OFF + offsetof(struct tcphdr, check))

const volatile bool can_read_summed; /* the kernel has bpf_cast_to_kern_ctx */

enum { CHECKSUM_NONE, CHECKSUM_UNNECESSARY, CHECKSUM_COMPLETE, CHECKSUM_PARTIAL };

struct sk_buff {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

static __always_inline __u32 summed(struct __sk_buff *skb)
{
	struct sk_buff *kernel_skb;

	if (!can_read_summed)
		return CHECKSUM_COMPLETE;
	kernel_skb = bpf_cast_to_kern_ctx(skb);
	return BPF_CORE_READ_BITFIELD(kernel_skb, ip_summed);
}

/* Patch a checksum after an address and other things have changed; packet pointers end here.
 *
 * old, new: an address. others: sum of what changed within the segment, as `changed` makes it.
 */
static __always_inline void patch_checksum(struct __sk_buff *skb, struct tcphdr *tcp, __be32 old,
					   __be32 new, __u64 others)
{
	switch (summed(skb)) {
	case CHECKSUM_NONE:
	case CHECKSUM_UNNECESSARY:
		tcp->check = ~folded(changed((__u16)~tcp->check + others, old, new));
		return;
	case CHECKSUM_PARTIAL:
		tcp->check = folded(changed(tcp->check, old, new));
		return;
	}
	if (others) {
		others = (others & 0xffffffff) + (others >> 32);
		others = (others & 0xffffffff) + (others >> 32);
		bpf_l4_csum_replace(skb, CHECK_OFF, 0, others, 0);
	}
	bpf_l4_csum_replace(skb, CHECK_OFF, old, new, BPF_F_PSEUDO_HDR | 4);
}
