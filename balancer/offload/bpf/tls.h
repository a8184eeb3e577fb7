/* The server name in a ClientHello that is whole, in one record.
 *
 * Twin: balancer/keys/tls.py
 */
#pragma once

#include "http.h"

#define MAX_EXTENSIONS 48
#define MAX_NAME_LEN 255
enum { TLS_HANDSHAKE = 22, TLS_CLIENT_HELLO = 1, TLS_MAJOR = 3, TLS_RECORD_LEN = 5 };

/* Where the server_name extension's content begins, among extensions; 0: there is none. */
__noinline __u32 find_server_name(__u32 off, __u32 end)
{
	struct scratch *scratch = get_scratch();

	if (!scratch)
		return 0;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (off + 4 > end)
			return 0;
		if (!number_at(scratch, off))
			return off + 4;
		off += 4 + number_at(scratch, off + 2);
	}
	return 0;
}

/* The name, as it stands. 0 as its end: not to be had here. */
static __always_inline struct part read_server_name(struct scratch *scratch, __u32 end)
{
	__u32 off = PAYLOAD_OFF + TLS_RECORD_LEN, hello_end, list_end, len;
	struct part name = {};

	if (PAYLOAD_OFF + 64 > end || *at(scratch, PAYLOAD_OFF) != TLS_HANDSHAKE ||
	    *at(scratch, PAYLOAD_OFF + 1) != TLS_MAJOR || *at(scratch, off) != TLS_CLIENT_HELLO ||
	    *at(scratch, off + 1))
		return name;
	hello_end = off + 4 + number_at(scratch, off + 2);
	if (hello_end > end || hello_end > off + number_at(scratch, PAYLOAD_OFF + 3))
		return name;
	off += 4 + 2 + 32; /* legacy_version, random */
	off += 1 + *at(scratch, off); /* legacy_session_id */
	if (off + 2 > hello_end)
		return name;
	off += 2 + number_at(scratch, off); /* cipher_suites */
	if (off + 1 > hello_end)
		return name;
	off += 1 + *at(scratch, off); /* legacy_compression_methods */
	if (off + 2 > hello_end)
		return name;
	list_end = off + 2 + number_at(scratch, off);
	if (list_end > hello_end)
		return name;
	off = find_server_name(off + 2, list_end);
	/* length of the list, kind of name (0: a host's), its length */
	if (!off || off + 5 > list_end || *at(scratch, off + 2))
		return name;
	len = number_at(scratch, off + 3);
	if (!len || len > MAX_NAME_LEN || off + 5 + len > list_end ||
	    5 + len > number_at(scratch, off - 2))
		return name;
	name.off = off + 5;
	name.end = name.off + len;
	return name;
}
