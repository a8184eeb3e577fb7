/* The server name in a ClientHello, as far as that has arrived in its first record.
 *
 * A name that is there is taken, whatever is missing behind it: current browsers' hellos are longer
 * than a segment. Twin: balancer/keys/tls.py
 */
#pragma once

#include "key.h"

#define MAX_EXTENSIONS 64 /* more go up */
#define MAX_RECORD_LEN (1 << 14)
#define MAX_HELLO_LEN (1 << 16)
enum { TLS_HANDSHAKE = 22, TLS_CLIENT_HELLO = 1, TLS_MAJOR = 3, TLS_RECORD_LEN = 5 };

/* What is there of a ClientHello. end: where it ends, or what has arrived of its first record, if
 * that is sooner. beyond: what reading past that means: NO_KEY, or NEED_MORE.
 */
struct hello {
	__u32 end;
	__u32 beyond;
};

/* Where the extensions begin, at their length; NO_KEY or NEED_MORE. off: of the message's content. */
static __always_inline __u32 skip_to_extensions(struct scratch *scratch, __u32 off,
						const struct hello *hello, __u32 hello_end)
{
	off += 2 + 32; /* legacy_version, random */
	if (off + 1 > hello->end)
		return hello->beyond;
	off += 1 + *at(scratch, off); /* legacy_session_id */
	if (off + 2 > hello->end)
		return hello->beyond;
	off += 2 + number_at(scratch, off); /* cipher_suites */
	if (off + 1 > hello->end)
		return hello->beyond;
	off += 1 + *at(scratch, off); /* legacy_compression_methods */
	if (off >= hello_end)
		return NO_KEY;
	return off + 2 > hello->end ? hello->beyond : off;
}

/* Where the server_name extension's content begins, or NO_KEY, or `beyond`. list_end: where the list
 * of extensions ends, which may not have arrived.
 */
__noinline __u32 find_server_name(struct scratch *scratch, __u32 off, __u32 list_end, __u32 end,
				  __u32 beyond)
{
	if (!scratch)
		return NEED_MORE;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		__u32 head;

		if (off >= list_end)
			return NO_KEY;
		if (off + 4 > end)
			return beyond;
		head = *(__u32 *)at(scratch, off);
		if (!(__u16)head)
			return off + 4;
		off += 4 + bpf_ntohs(head >> 16);
	}
	return NEED_MORE;
}

/* Find the server name, in small letters. end: of the payload. */
__noinline int find_name_in_hello(struct scratch *scratch, __u32 end)
{
	__u32 off = PAYLOAD_OFF + TLS_RECORD_LEN, record_end, record_len, hello_end, list_end;
	__u32 extension_end;
	struct hello hello;
	struct part name;
	__u8 *head;

	if (!scratch || end <= PAYLOAD_OFF)
		return NEED_MORE;
	head = scratch->octets + PAYLOAD_OFF; /* whose place is known: nothing to mask */
	if (head[0] != TLS_HANDSHAKE)
		return NO_KEY;
	if (PAYLOAD_OFF + 2 > end)
		return NEED_MORE;
	if (head[1] != TLS_MAJOR)
		return NO_KEY;
	if (off > end)
		return NEED_MORE;
	record_len = head[3] << 8 | head[4];
	if (!record_len || record_len > MAX_RECORD_LEN)
		return NO_KEY;
	record_end = off + record_len;
	if (record_end < end)
		end = record_end; /* what comes behind goes up, if it is needed */
	if (off + 1 > end)
		return NEED_MORE;
	if (head[TLS_RECORD_LEN] != TLS_CLIENT_HELLO)
		return NO_KEY;
	if (off + 4 > end)
		return NEED_MORE;
	hello_end = off + 4 + (head[6] << 16 | head[7] << 8 | head[8]);
	if (hello_end > off + MAX_HELLO_LEN)
		return NO_KEY;
	hello.end = hello_end < end ? hello_end : end;
	hello.beyond = hello_end <= end ? NO_KEY : NEED_MORE;
	off = skip_to_extensions(scratch, off + 4, &hello, hello_end);
	if (off <= NEED_MORE)
		return off;
	list_end = off + 2 + number_at(scratch, off);
	if (list_end > hello_end)
		list_end = hello_end;
	off = find_server_name(scratch, off + 2, list_end, hello.end, hello.beyond);
	if (off <= NEED_MORE)
		return off;
	extension_end = off + number_at(scratch, off - 2);
	if (extension_end > list_end)
		extension_end = list_end;
	/* length of the list, kind of name (0: a host's), its length */
	if (off + 3 > hello.end)
		return hello.beyond;
	if (*at(scratch, off + 2))
		return NO_KEY;
	if (off + 5 > hello.end)
		return hello.beyond;
	name.off = off + 5;
	name.end = name.off + number_at(scratch, off + 3);
	if (name.end > extension_end)
		return NO_KEY;
	if (name.end > hello.end)
		return hello.beyond;
	copy_lowered(scratch, name.off, name.off, name.end);
	return give(scratch, name, WHOLE);
}
