/* As much of an HTTP/1 request as a key needs.
 *
 * Twin: balancer/keys/http.py
 */
#pragma once

#include "key.h"

#define MAX_METHOD_LEN 32
#define MAX_EMPTY_LINES 16
#define MAX_PARAMETERS 128 /* more go up */
#define MAX_DEPTH 64 /* more go up */
#define MAX_AT_SIGNS 4 /* in an authority; more go up */
#define MAX_HOST_LEN (PAYLOAD_OFF - 16)

#define WORD(a, b, c, d, e, f, g, h)                                                               \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
#define BEGINS(word, count, ...)                                                                   \
	(((word) & (~0ULL >> (64 - 8 * (count)))) == WORD(__VA_ARGS__))

/* tchar of RFC 9110 §5.6.2, a bit for each octet */
static __always_inline bool is_of_token(__u8 octet)
{
	__u64 bits = octet < 64 ? 0x03ff6cfa00000000ULL : octet < 128 ? 0x57ffffffc7fffffeULL : 0;

	return bits >> (octet & 63) & 1;
}

/* Where a token ends that is no longer than a method; or one octet further than that. */
__noinline __u32 find_token_end(struct scratch *scratch, __u32 off, __u32 end)
{
	if (!scratch)
		return end;
	for (int i = 0; i <= MAX_METHOD_LEN; i++) {
		if (off >= end || !is_of_token(*at(scratch, off)))
			break;
		off++;
	}
	return off;
}

/* Where the first line that is not empty begins, or NO_KEY, or NEED_MORE. off: of the payload.
 *
 * An argument, since the verifier would follow what it knows the value of through every turn.
 */
__noinline __u32 skip_empty_lines(struct scratch *scratch, __u32 off, __u32 end)
{
	if (!scratch)
		return NEED_MORE;
	for (int i = 0; i < MAX_EMPTY_LINES; i++) {
		__u8 octet = *at(scratch, off);

		if (off >= end)
			return NEED_MORE;
		if (octet != '\n' && octet != '\r')
			break;
		if (octet == '\r') {
			off++;
			if (off >= end)
				return NEED_MORE;
			if (*at(scratch, off) != '\n')
				return NO_KEY;
		}
		off++;
	}
	return off;
}

/* Where the target begins after any method, or NO_KEY, or NEED_MORE. */
__noinline __u32 find_any_target(struct scratch *scratch, __u32 end)
{
	__u32 start, off;
	__u8 octet;

	if (!scratch)
		return NEED_MORE;
	start = skip_empty_lines(scratch, PAYLOAD_OFF, end);
	if (start <= NEED_MORE)
		return start;
	off = find_token_end(scratch, start, end);
	if (off - start > MAX_METHOD_LEN)
		return NO_KEY;
	if (off >= end)
		return NEED_MORE;
	octet = *at(scratch, off);
	if (off == start)
		return octet == '\r' && off + 1 == end ? NEED_MORE : NO_KEY;
	if (octet != ' ' || BEGINS(*(__u64 *)at(scratch, start), 4, 'P', 'R', 'I', ' ', 0, 0, 0, 0))
		return NO_KEY;
	return off + 1;
}

/* Where the target begins, or NO_KEY, or NEED_MORE. */
static __always_inline __u32 find_target(struct scratch *scratch, __u32 end)
{
	__u64 word = *(__u64 *)at(scratch, PAYLOAD_OFF);

	if (PAYLOAD_OFF + 8 > end)
		return find_any_target(scratch, end);
	if (BEGINS(word, 4, 'G', 'E', 'T', ' ', 0, 0, 0, 0))
		return PAYLOAD_OFF + 4;
	if (BEGINS(word, 5, 'P', 'O', 'S', 'T', ' ', 0, 0, 0) ||
	    BEGINS(word, 5, 'H', 'E', 'A', 'D', ' ', 0, 0, 0))
		return PAYLOAD_OFF + 5;
	return find_any_target(scratch, end);
}

/* What is known of the octets that follow a target. */
static __always_inline __u32 rest_of(struct scratch *scratch, struct part target, __u32 end)
{
	__u8 next = *at(scratch, target.end);

	if (target.end >= end)
		return NEED_MORE;
	return target.end > target.off && (next == ' ' || next == '\r' || next == '\n') ? WHOLE
											 : NO_KEY;
}

/* The end of the request line after a target: of its line feed, or NO_KEY, or NEED_MORE. */
static __always_inline __u32 skip_version(struct scratch *scratch, __u32 off, __u32 end)
{
	__u64 word = *(__u64 *)at(scratch, off);
	__u32 line_end = off + 9;

	if (word == WORD(' ', 'H', 'T', 'T', 'P', '/', '1', '.') &&
	    (*at(scratch, off + 8) | 1) == '1') {
		if (*at(scratch, line_end) == '\r')
			line_end++;
		if (line_end < end && *at(scratch, line_end) == '\n')
			return line_end;
	}
	return end - off > 10 || find_octet(scratch, off, end, '\n') < end ? NO_KEY : NEED_MORE;
}

/* Where a header's value begins, or NO_KEY, or NEED_MORE. off: of the request line's end. */
__noinline __u32 find_header(struct scratch *scratch, const struct name *name, __u32 off, __u32 end)
{
	if (!scratch || !name)
		return NEED_MORE;
	for (int i = 0; i < STEPS; i++) {
		__u64 word, found;

		if (off >= end)
			return NEED_MORE;
		word = *(__u64 *)at(scratch, off);
		found = EQUAL(word, '\n');
		if (!found) {
			off += 8;
			continue;
		}
		off += first_octet(found) + 1;
		word = *(__u64 *)at(scratch, off);
		if (is_at(scratch, name, word, off, end))
			return off + name->len;
		if ((__u8)word == '\n')
			return off < end ? NO_KEY : NEED_MORE;
		if ((__u16)word == ('\r' | '\n' << 8))
			return off + 1 < end ? NO_KEY : NEED_MORE;
	}
	return NEED_MORE;
}

/* Where a parameter's value begins in a list of `a=b`; NO_KEY if it has none; or NEED_MORE. */
__noinline __u32 find_parameter(struct scratch *scratch, const struct name *name, __u32 off,
				__u32 end, __u8 separator)
{
	if (!scratch || !name)
		return NEED_MORE;
	for (int i = 0; i < MAX_PARAMETERS; i++) {
		if (separator == ';') {
			if (*at(scratch, off) == ' ')
				off++; /* as there is, nearly always */
			if (is_blank(*at(scratch, off)))
				off = skip_blanks(scratch, off, end);
			if (off < end && is_blank(*at(scratch, off)))
				return NEED_MORE;
		}
		if (off >= end)
			return NO_KEY;
		if (is_at(scratch, name, *(__u64 *)at(scratch, off), off, end))
			return off + name->len;
		off = find_octet(scratch, off, end, separator) + 1;
	}
	return NEED_MORE;
}

/* The value of one in a list, as the key. rest: what is known of the octets that follow the list. */
static __always_inline int give_parameter(struct scratch *scratch, const struct name *name,
					  struct part list, __u32 rest, __u8 separator)
{
	struct part value;

	value.off = find_parameter(scratch, name, list.off, list.end, separator);
	if (value.off == NO_KEY)
		return rest == WHOLE ? NO_KEY : rest;
	if (value.off == NEED_MORE)
		return NEED_MORE;
	value.end = find_octet(scratch, value.off, list.end, separator);
	if (value.end < list.end)
		rest = WHOLE;
	if (separator == ';') {
		value.end = cut_blanks(scratch, value.off, value.end);
		if (value.off < value.end && is_blank(*at(scratch, value.end - 1)))
			return NEED_MORE;
	}
	return give(scratch, value, rest);
}

/* A header's value, with the blanks around it; up to `end` if its line goes on. Returns: WHOLE,
 * NO_KEY or NEED_MORE. target_end: of the request.
 */
static __always_inline __u32 read_header(struct scratch *scratch, const struct name *name,
					 __u32 target_end, __u32 end, struct part *value)
{
	__u32 line_end = skip_version(scratch, target_end, end);

	if (line_end <= NEED_MORE)
		return line_end;
	value->off = find_header(scratch, name, line_end, end);
	if (value->off <= NEED_MORE)
		return value->off;
	value->end = find_octet(scratch, value->off, end, '\n');
	return WHOLE;
}

/* A header, or a cookie of one, as the key. */
__noinline int give_header(struct scratch *scratch, const struct key_spec *spec, __u32 target_end,
			   __u32 end)
{
	struct part value;
	__u32 rest;

	if (!scratch || !spec)
		return NEED_MORE;
	rest = read_header(scratch, &spec->header, target_end, end, &value);
	if (rest != WHOLE)
		return rest;
	if (value.end >= end)
		rest = NEED_MORE;
	if (spec->kind == KEY_COOKIE)
		return give_parameter(scratch, &spec->name, value, rest, ';');
	return strip(scratch, &value) ? give(scratch, value, rest) : NEED_MORE;
}

/* A host without its port. Returns: WHOLE, or NO_KEY. */
static __always_inline int cut_port(struct scratch *scratch, struct part *host)
{
	__u32 end;

	if (host->off < host->end && *at(scratch, host->off) == '[') {
		end = find_octet(scratch, host->off, host->end, ']') + 1;
		if (end > host->end)
			return NO_KEY;
	} else {
		end = find_octet(scratch, host->off, host->end, ':');
	}
	host->end = end;
	return host->off < end ? WHOLE : NO_KEY;
}

/* The Host header's host. target_end: of the request. */
static __always_inline int read_host(struct scratch *scratch, const struct name *name,
				     __u32 target_end, __u32 end, struct part *host)
{
	__u32 rest = read_header(scratch, name, target_end, end, host);

	if (rest != WHOLE)
		return rest;
	if (host->end >= end || !strip(scratch, host))
		return NEED_MORE;
	return cut_port(scratch, host);
}

/* The host of a target that has an authority. */
static __always_inline int cut_authority(struct scratch *scratch, struct part *host, __u32 rest)
{
	int i;

	if (rest != WHOLE)
		return rest;
	for (i = 0; i < MAX_AT_SIGNS; i++) {
		__u32 sign = find_octet(scratch, host->off, host->end, '@');

		if (sign >= host->end)
			break;
		host->off = sign + 1;
	}
	return i < MAX_AT_SIGNS ? cut_port(scratch, host) : NEED_MORE;
}

/* Where the authority of a target ends. */
__noinline __u32 find_authority_end(struct scratch *scratch, __u32 off, __u32 end)
{
	if (!scratch)
		return end;
	for (int i = 0; i < STEPS_OF_8; i++) {
		__u64 word, found;

		if (off >= end)
			break;
		word = *(__u64 *)at(scratch, off);
		found = EQUAL(word, '/') | EQUAL(word, '?') | EQUAL(word, '#');
		if (found) {
			off += first_octet(found);
			break;
		}
		off += 8;
	}
	return off < end ? off : end;
}

/* Where level `depth` of a path ends: at the slash after it; `end` if there is none; or NEED_MORE. */
__noinline __u32 find_depth(struct scratch *scratch, __u32 off, __u32 end, __u32 depth)
{
	off--;
	for (int i = 0; i <= MAX_DEPTH; i++) {
		off = find_octet(scratch, off + 1, end, '/');
		if (i == depth || off >= end)
			return off;
	}
	return NEED_MORE;
}

/* The path up to the spec's length and depth. Returns: its rest. */
static __always_inline __u32 clip(struct scratch *scratch, const struct key_spec *spec,
				  struct part *path, __u32 rest)
{
	if (spec->max_len && path->end - path->off >= spec->max_len) {
		path->end = path->off + spec->max_len;
		rest = WHOLE;
	}
	if (spec->depth) {
		__u32 end = find_depth(scratch, path->off, path->end, spec->depth);

		if (end == NEED_MORE)
			return NEED_MORE;
		if (end < path->end) {
			path->end = end;
			rest = WHOLE;
		}
	}
	return rest;
}

/* The host in small letters, and the path behind it, as the key. */
static __always_inline int give_host(struct scratch *scratch, struct part host, struct part path)
{
	__u32 len = host.end - host.off;

	if (len > MAX_HOST_LEN)
		return NEED_MORE;
	path.off -= len;
	copy_lowered(scratch, path.off, host.off, host.end);
	return give(scratch, path, WHOLE);
}

#define BEFORE_PAYLOAD ((struct part){PAYLOAD_OFF, PAYLOAD_OFF})

/* A key of a target that is a path. target: where it begins. */
__noinline int give_of_path(struct scratch *scratch, const struct key_spec *spec, __u32 off,
			    __u32 end)
{
	struct part path = {.off = off}, target = {.off = off}, host;
	__u32 rest, path_rest, kind;
	bool has_query;

	if (!scratch || !spec)
		return NEED_MORE;
	kind = spec->kind;
	path.end = find_target_end(scratch, off, end, kind == KEY_TARGET ? ' ' : '?');
	has_query = path.end < end && *at(scratch, path.end) == '?';
	target.end = path.end;
	if (has_query && kind != KEY_PATH)
		target.end = find_target_end(scratch, path.end, end, ' ');
	rest = rest_of(scratch, target, end);
	path_rest = has_query ? WHOLE : rest;
	if (kind == KEY_PATH || kind == KEY_TARGET) {
		path_rest = clip(scratch, spec, &path, path_rest);
		return give(scratch, path, path_rest);
	}
	if (kind == KEY_QUERY) {
		struct part query = {path.end + has_query, target.end};

		return give_parameter(scratch, &spec->name, query, rest, '&');
	}
	if (rest != WHOLE)
		return rest;
	rest = read_host(scratch, &spec->header, target.end, end, &host);
	if (rest != WHOLE)
		return rest;
	if (kind == KEY_HOST)
		return give_host(scratch, host, BEFORE_PAYLOAD);
	if (clip(scratch, spec, &path, WHOLE) != WHOLE)
		return NEED_MORE;
	return give_host(scratch, host, path);
}

/* Where the authority begins in a target in absolute form; NO_KEY: it is in another form. */
static __always_inline __u32 skip_scheme(struct scratch *scratch, struct part target)
{
	__u64 word = *(__u64 *)at(scratch, target.off);
	__u64 small = word | WORD(' ', ' ', ' ', ' ', 0, 0, 0, 0);

	if (BEGINS(small, 7, 'h', 't', 't', 'p', ':', '/', '/', 0) &&
	    target.off + 7 <= target.end)
		return target.off + 7;
	small |= WORD(0, 0, 0, 0, ' ', 0, 0, 0);
	if (small == WORD('h', 't', 't', 'p', 's', ':', '/', '/') && target.off + 8 <= target.end)
		return target.off + 8;
	return NO_KEY;
}

/* Whether the method before a target is CONNECT. */
static __always_inline bool is_connect(struct scratch *scratch, __u32 off)
{
	return off >= PAYLOAD_OFF + 8 &&
	       *(__u64 *)at(scratch, off - 8) ==
		       WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', ' ') &&
	       (off == PAYLOAD_OFF + 8 || *at(scratch, off - 9) == '\n');
}

/* A key of a target with an authority, and a path behind it. path_off: where that begins. */
__noinline int give_of_absolute(struct scratch *scratch, const struct key_spec *spec, __u32 off,
				__u32 end, __u32 rest)
{
	struct part host = {.off = off}, path = {.end = end};
	__u32 query_off, path_rest, kind;
	bool lacks_slash;
	__u8 before;
	int result;

	if (!scratch || !spec)
		return NEED_MORE;
	kind = spec->kind;
	path.off = host.end = find_authority_end(scratch, off, end);
	query_off = find_octet(scratch, path.off, end, '?');
	if (kind == KEY_QUERY) {
		struct part query = {query_off + (query_off < end), end};

		return give_parameter(scratch, &spec->name, query, rest, '&');
	}
	path_rest = rest;
	if (kind != KEY_TARGET && query_off < end) {
		path.end = query_off;
		path_rest = WHOLE;
	}
	lacks_slash = path.off < end ? *at(scratch, path.off) != '/' : rest == WHOLE;
	if (kind == KEY_HOST || kind == KEY_HOST_AND_PATH) {
		result = cut_authority(scratch, &host, host.end < end ? WHOLE : rest);
		if (result != WHOLE)
			return result;
		if (kind == KEY_HOST)
			return give_host(scratch, host, BEFORE_PAYLOAD);
		if (lacks_slash) { /* one is put where nothing else is wanted */
			if (path.off < path.end)
				return NEED_MORE; /* a fragment, which is no client's to send */
			*at(scratch, PAYLOAD_OFF - 1) = '/';
			path = (struct part){PAYLOAD_OFF - 1, PAYLOAD_OFF};
			return give_host(scratch, host, path);
		}
		path_rest = clip(scratch, spec, &path, path_rest);
		return path_rest == WHOLE ? give_host(scratch, host, path) : path_rest;
	}
	if (lacks_slash)
		path.off--;
	before = *at(scratch, path.off);
	if (lacks_slash)
		*at(scratch, path.off) = '/';
	path_rest = clip(scratch, spec, &path, path_rest);
	result = give(scratch, path, path_rest);
	if (result != WHOLE)
		*at(scratch, path.off) = before; /* the fallback reads it again */
	return result;
}

/* A key of a target that is no path. off: where it begins. */
static __always_inline int give_of_other(struct scratch *scratch, const struct key_spec *spec,
					 __u32 off, __u32 end)
{
	struct part target = {.off = off}, host;
	__u32 rest, authority_off;
	int result;

	target.end = find_target_end(scratch, off, end, ' ');
	rest = rest_of(scratch, target, end);
	authority_off = skip_scheme(scratch, target);
	if (authority_off != NO_KEY)
		return give_of_absolute(scratch, spec, authority_off, target.end, rest);
	if (rest == NEED_MORE)
		return NEED_MORE;
	if (spec->kind != KEY_HOST)
		return NO_KEY;
	if (is_connect(scratch, off) &&
	    find_authority_end(scratch, off, target.end) == target.end) {
		host = target;
		result = cut_authority(scratch, &host, rest);
	} else {
		result = rest == WHOLE ? read_host(scratch, &spec->header, target.end, end, &host)
				       : rest;
	}
	return result == WHOLE ? give_host(scratch, host, BEFORE_PAYLOAD) : result;
}

/* Find a key of a request. end: of the payload. */
__noinline int find_in_request(struct scratch *scratch, const struct key_spec *spec, __u32 end)
{
	struct part target;
	__u32 rest;

	if (!scratch || !spec)
		return NEED_MORE;
	target.off = find_target(scratch, end);
	if (target.off <= NEED_MORE)
		return target.off;
	if (spec->kind == KEY_HEADER || spec->kind == KEY_COOKIE) {
		target.end = find_target_end(scratch, target.off, end, ' ');
		rest = rest_of(scratch, target, end);
		return rest == WHOLE ? give_header(scratch, spec, target.end, end) : rest;
	}
	if (target.off < end && *at(scratch, target.off) == '/')
		return give_of_path(scratch, spec, target.off, end);
	return give_of_other(scratch, spec, target.off, end);
}
