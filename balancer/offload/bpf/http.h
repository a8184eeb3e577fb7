/* As much of an HTTP/1 request as a key needs, where it is plain and whole.
 *
 * Anything else (odd methods, absolute targets, leading empty lines, hosts of other octets than
 * names have) is left to the portable engine. Twin: balancer/keys/http.py
 */
#pragma once

#include "scratch.h"

#define MAX_HEADERS 64
#define MAX_HOST_LEN 128
#define MAX_BLANKS 4

/* Octets of the scratch, from `off` to `end`. */
struct part {
	__u32 off;
	__u32 end;
};

#define WORD(a, b, c, d, e, f, g, h)                                                               \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
#define BEGINS(word, count, ...)                                                                   \
	(((word) & (~0ULL >> (64 - 8 * (count)))) == WORD(__VA_ARGS__))

/* Where the target begins; 0: no method that is known, or no path. */
static __always_inline __u32 find_path(struct scratch *scratch)
{
	__u64 word = *(__u64 *)at(scratch, PAYLOAD_OFF);

	if (BEGINS(word, 5, 'G', 'E', 'T', ' ', '/', 0, 0, 0) ||
	    BEGINS(word, 5, 'P', 'U', 'T', ' ', '/', 0, 0, 0))
		return PAYLOAD_OFF + 4;
	if (BEGINS(word, 6, 'P', 'O', 'S', 'T', ' ', '/', 0, 0) ||
	    BEGINS(word, 6, 'H', 'E', 'A', 'D', ' ', '/', 0, 0))
		return PAYLOAD_OFF + 5;
	if (BEGINS(word, 8, 'D', 'E', 'L', 'E', 'T', 'E', ' ', '/'))
		return PAYLOAD_OFF + 7;
	return 0;
}

/* Whether ` HTTP/1.0` or ` HTTP/1.1` and a line end are at `off`. Returns: of the line feed, or 0. */
static __always_inline __u32 skip_version(struct scratch *scratch, __u32 off, __u32 end)
{
	__u32 digit;

	if (off + 11 > end || *(__u64 *)at(scratch, off) !=
				      WORD(' ', 'H', 'T', 'T', 'P', '/', '1', '.'))
		return 0;
	digit = *at(scratch, off + 8);
	if (digit != '0' && digit != '1')
		return 0;
	off += 9;
	if (*at(scratch, off) == '\r')
		off++;
	return *at(scratch, off) == '\n' ? off : 0;
}

/* Where the Host header's value begins. line_end: of the request line. 0: none, or not yet. */
__noinline __u32 find_host(__u32 line_end, __u32 end)
{
	struct scratch *scratch = get_scratch();

	if (!scratch)
		return 0;
	for (int i = 0; i < MAX_HEADERS; i++) {
		__u64 word;

		if (line_end + 7 > end)
			return 0;
		word = *(__u64 *)at(scratch, line_end);
		/* 0x20 makes letters small, and leaves the colon as it is */
		if (((word | WORD(0, ' ', ' ', ' ', ' ', 0, 0, 0)) & (~0ULL >> 16)) ==
		    WORD('\n', 'h', 'o', 's', 't', ':', 0, 0))
			return line_end + 6;
		if ((__u8)(word >> 8) == '\r' || (__u8)(word >> 8) == '\n')
			return 0;
		line_end = find_line_end(line_end + 1, end);
	}
	return 0;
}

static __always_inline int is_of_name(__u8 octet)
{
	__u8 small = octet | 0x20;

	return (small >= 'a' && small <= 'z') || (octet >= '0' && octet <= '9') ||
	       octet == '.' || octet == '-';
}

/* The end of the host that begins at `off`, without a port; 0: it is not a plain name. */
__noinline __u32 find_host_end(__u32 off, __u32 end)
{
	struct scratch *scratch = get_scratch();
	__u32 start = off;
	__u8 octet;

	if (!scratch)
		return 0;
	for (int i = 0; i < MAX_HOST_LEN; i++) {
		if (off >= end || !is_of_name(*at(scratch, off)))
			break;
		off++;
	}
	if (off == start || off + 1 >= end)
		return 0;
	octet = *at(scratch, off);
	if (octet == '\n' || (octet == '\r' && *at(scratch, off + 1) == '\n'))
		return off;
	return octet == ':' && find_line_end(off, end) < end ? off : 0;
}

/* The path, without its query unless `whole`. 0 as its end: not to be had here. */
static __always_inline struct part read_path(struct scratch *scratch, __u32 end, int whole)
{
	struct part path = {.off = find_path(scratch)};
	__u8 last;

	if (!path.off)
		return path;
	path.end = find_target_end(path.off, end, whole ? ' ' : '?');
	last = *at(scratch, path.end);
	if (path.end >= end || (last != ' ' && last != '?'))
		path.end = 0;
	return path;
}

/* The host. path: of the same request. 0 as its end: not to be had here. */
static __always_inline struct part read_host(struct scratch *scratch, struct part path, __u32 end)
{
	struct part host = {};
	__u32 target_end, line_end;

	target_end = find_target_end(path.end, end, ' ');
	if (target_end >= end)
		return host;
	line_end = skip_version(scratch, target_end, end);
	if (!line_end)
		return host;
	host.off = find_host(line_end, end);
	if (!host.off)
		return host;
#pragma unroll
	for (int i = 0; i < MAX_BLANKS; i++) {
		if (*at(scratch, host.off) != ' ')
			break;
		host.off++;
	}
	host.end = find_host_end(host.off, end);
	return host;
}
