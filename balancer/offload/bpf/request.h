/* The key of the first payload, and the backend that it chooses.
 *
 * Twin: balancer/keys/request.py
 */
#pragma once

#include "http.h"
#include "schedule.h"
#include "tls.h"

#define PASS_UP -1

/* KEY_NONE: left to the portable engine. */
enum key_kind {
	KEY_NONE, KEY_PATH, KEY_TARGET, KEY_HOST, KEY_HOST_AND_PATH, KEY_SERVER_NAME, KEY_SOURCE
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, enum key_kind);
} key_kinds SEC(".maps");

/* The key, of the scratch's octets. 0 as its end: not to be had here. */
static __always_inline struct part read_key(struct scratch *scratch, __u32 kind, __u32 end)
{
	struct part key, host;

	if (kind == KEY_SERVER_NAME) {
		key = read_server_name(scratch, end);
		if (key.end)
			copy_lowered(key.off, key.off, key.end);
		return key;
	}
	key = read_path(scratch, end, kind == KEY_TARGET);
	if (!key.end || kind == KEY_PATH || kind == KEY_TARGET)
		return key;
	host = read_host(scratch, key, end);
	if (!host.end)
		return host;
	/* right before the path, over the method and the room before it */
	key.off -= host.end - host.off;
	host.end = copy_lowered(key.off, host.off, host.end);
	if (kind == KEY_HOST)
		key.end = host.end;
	return key;
}

/* The id of the backend for a first payload of `len` octets at `off` in the frame, or PASS_UP.
 *
 * saddr: the client's address.
 */
__noinline int choose_backend(struct xdp_md *ctx, __u32 off, __u32 len, __u32 service, __be32 saddr)
{
	__u32 *kind = bpf_map_lookup_elem(&key_kinds, &service);
	struct scratch *scratch = get_scratch();
	struct part key;

	if (!kind || !*kind || !scratch)
		return PASS_UP;
	if (*kind == KEY_SOURCE) {
		*(__be32 *)at(scratch, PAYLOAD_OFF) = saddr;
		return pick(service, hash_key(PAYLOAD_OFF, PAYLOAD_OFF + sizeof(saddr)));
	}
	if (!len || len > PAYLOAD_MAX)
		return PASS_UP;
	/* Linux 6.1 forgets that this is not 0 unless it is said in its own way */
	asm volatile("%0 += -1\n%0 &= 2047\n%0 += 1" : "+r"(len));
	if (bpf_xdp_load_bytes(ctx, off, scratch->octets + PAYLOAD_OFF, len))
		return PASS_UP;
	key = read_key(scratch, *kind, PAYLOAD_OFF + len);
	return key.end > key.off ? pick(service, hash_key(key.off, key.end)) : PASS_UP;
}
