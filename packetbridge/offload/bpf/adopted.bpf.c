/* Adopted connections among the host's sockets: an octet for each, when the daemon reads.
 *
 * Nothing is counted while nobody asks: the stack has these connections, and knows best how many.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define MAX_SERVICES 64

/* The states of a connection that has begun, and is known to an application or has data to send. */
enum {
	ESTABLISHED = 1 << 1, FIN_WAIT1 = 1 << 4, FIN_WAIT2 = 1 << 5, CLOSE_WAIT = 1 << 8,
	LAST_ACK = 1 << 9, CLOSING = 1 << 11,
};

struct sock_common {
	__be32 skc_rcv_saddr;
	__u16 skc_num;
	unsigned char skc_state;
} __attribute__((preserve_access_index));

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

/* Source: linux/net/ipv4/tcp_ipv4.c. The pointers take 8 octets each. */
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct local_end {
	__be32 address;
	__u16 port; /* the host's order */
	__u16 padding;
};

/* The services' ends, and the octet that each is told by. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__type(key, struct local_end);
	__type(value, __u8);
} ends SEC(".maps");

SEC("iter/tcp")
int tell_adopted(struct bpf_iter__tcp *ctx)
{
	const __u32 counted = ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING;
	struct sock_common *sk = ctx->sk_common;
	struct local_end end = {};
	__u8 *told;

	if (!sk || !(1U << (sk->skc_state & 31) & counted))
		return 0;
	end.address = sk->skc_rcv_saddr;
	end.port = sk->skc_num;
	told = bpf_map_lookup_elem(&ends, &end);
	if (told)
		bpf_seq_write(ctx->meta->seq, told, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
