/* ICMP, as far as programs look at it. */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

#include "common/bpf/include/constants.h"

/* Twin: common/wire/icmp.py:ERRORS */
static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_DEST_UNREACHABLE || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETER_PROBLEM;
}
