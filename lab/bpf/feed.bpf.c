/* Feeds frames to another program, one after the other: what that does to them stays theirs.
 *
 * A test run repeats a program on what the run before has left. So each run begins here, with a
 * fresh copy of a frame, and goes on in the program that is measured.
 */
#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME_LEN 1514
#define SADDR_OFF 26 /* in the frame */

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct frame {
	__u32 len;
	__u8 octets[FRAME_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frame);
} frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} measured SEC(".maps");

const volatile __u32 mask; /* how many, a power of two, less one */
__u32 count;

/* Every place once before any comes again, in no order that a processor could foresee. */
static __always_inline __u32 next_place(void)
{
	return count++ * 0x9e3779b1 & mask;
}

static __always_inline int feed(struct xdp_md *ctx, __u32 place)
{
	struct frame *frame = bpf_map_lookup_elem(&frames, &place);
	__u32 len;

	if (!frame)
		return XDP_ABORTED;
	len = frame->len;
	if (!len || len > sizeof(frame->octets) ||
	    bpf_xdp_adjust_tail(ctx, (int)len - (int)bpf_xdp_get_buff_len(ctx)) ||
	    bpf_xdp_store_bytes(ctx, 0, frame->octets, len))
		return XDP_ABORTED;
	return 0;
}

/* One frame after the other. */
SEC("xdp.frags")
int feed_frames(struct xdp_md *ctx)
{
	if (!feed(ctx, next_place()))
		bpf_tail_call(ctx, &measured, 0);
	return XDP_ABORTED;
}

/* One frame, from one client after the other: of 10.0.0.0/8, by number. */
SEC("xdp.frags")
int feed_clients(struct xdp_md *ctx)
{
	__be32 saddr = bpf_htonl(10 << 24 | next_place());

	if (!feed(ctx, 0) && !bpf_xdp_store_bytes(ctx, SADDR_OFF, &saddr, sizeof(saddr)))
		bpf_tail_call(ctx, &measured, 0);
	return XDP_ABORTED;
}

/* In place of what is measured: the time that the feeding takes. */
SEC("xdp.frags")
int nothing(struct xdp_md *ctx)
{
	return XDP_DROP;
}
