/* The kill switch: from a time on packets are the host's, whether or not there is a daemon. */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

const volatile __u64 ends_ns; /* since the boot; 0: never, and the verifier takes the question out */

static __always_inline bool is_over(void)
{
	return ends_ns && bpf_ktime_get_boot_ns() >= ends_ns;
}
