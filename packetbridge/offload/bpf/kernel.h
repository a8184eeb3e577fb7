/* What the kernel has for adoption: types by name only (CO-RE finds the offsets), and the kfunc.
 *
 * Source: linux/net/core/filter.c:bpf_sk_assign_tcp_reqsk (Linux 6.9 and later).
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct sock_common {
	__u32 skc_tw_rcv_nxt;
	__u32 skc_tw_snd_nxt;
} __attribute__((preserve_access_index));

struct inet_timewait_sock {
	struct sock_common __tw_common;
} __attribute__((preserve_access_index));

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	__u32 tw_ts_recent;
} __attribute__((preserve_access_index));

/* No field of it is read, but libbpf compares the kfunc's arguments with the kernel's. */
struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));

/* What a handshake agreed on. The call fails with -EINVAL unless `reserved` is zero, mss is at
 * least 536, and the sysctls of the options that are set are on.
 */
struct bpf_tcp_req_attrs {
	__u32 rcv_tsval;
	__u32 rcv_tsecr;
	__u16 mss;
	__u8 rcv_wscale;
	__u8 snd_wscale;
	__u8 ecn_ok;
	__u8 wscale_ok;
	__u8 sack_ok;
	__u8 tstamp_ok;
	__u8 usec_ts_ok; /* must stay 0: kernels before 2026 mix up the units */
	__u8 reserved[3];
};

extern int bpf_sk_assign_tcp_reqsk(struct __sk_buff *skb, struct sock *sk,
				   struct bpf_tcp_req_attrs *attrs, int attrs__sz) __ksym;
