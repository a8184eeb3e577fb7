/* What a service asks for as its key, and how the search for it may end.
 *
 * Twin: balancer/keys/request.py:KeySpec
 */
#pragma once

#include "scratch.h"

#define NAME_WORDS 8
#define MAX_BLANKS 16 /* around a value; more go up */

/* How a search ends, where it does not with an offset (which is greater). What needs more octets goes
 * up, and so does what is too unusual.
 *
 * Twin: balancer/keys/http.py:Missing
 */
enum { NO_KEY, NEED_MORE, WHOLE };

/* NONE: left to the portable engine. */
enum key_kind {
	KEY_NONE,
	KEY_SOURCE,
	KEY_SOURCE_AND_PORT,
	KEY_PAYLOAD,
	KEY_SERVER_NAME,
	KEY_PATH,
	KEY_TARGET,
	KEY_HOST,
	KEY_HOST_AND_PATH,
	KEY_HEADER,
	KEY_COOKIE,
	KEY_QUERY,
};

/* A name with what must follow it, `:` or `=`, in words as they lie in memory. folds: the bits that
 * make letters small, where case does not matter. masks: which octets count. len: octets.
 */
struct name {
	__u64 words[NAME_WORDS];
	__u64 folds[NAME_WORDS];
	__u64 masks[NAME_WORDS];
	__u32 len;
	__u32 padding;
};

/* length: of `payload:N`. depth, max_len: of a path; 0: all of it. header: that is looked for.
 * name: of a cookie in it, or of a query's parameter.
 */
struct key_spec {
	enum key_kind kind;
	__u32 length;
	__u32 depth;
	__u32 max_len;
	struct name header;
	struct name name;
};

/* Keep a part as the key, if it is one. rest: what is known of the octets that follow. */
static __always_inline int give(struct scratch *scratch, struct part part, __u32 rest)
{
	if (rest != WHOLE)
		return rest;
	if (part.off >= part.end)
		return NO_KEY;
	scratch->key = part;
	return WHOLE;
}

static __always_inline bool begins(const struct name *name, __u64 word, int index)
{
	return ((word | name->folds[index]) & name->masks[index]) == name->words[index];
}

/* Whether the rest of a name is at `off`, whose first word has been compared. Global, so that the
 * loops that ask are verified without it.
 */
__noinline int goes_on(struct scratch *scratch, const struct name *name, __u32 off)
{
	if (!scratch || !name)
		return false;
	for (int i = 1; i < NAME_WORDS; i++) {
		if (i * 8 >= name->len)
			break;
		if (!begins(name, *(__u64 *)at(scratch, off + i * 8), i))
			return false;
	}
	return true;
}

/* Whether a name is at `off`. word: what is there. Most names are no longer than that: no call. */
static __always_inline bool is_at(struct scratch *scratch, const struct name *name, __u64 word,
				  __u32 off, __u32 end)
{
	return begins(name, word, 0) && off + name->len <= end &&
	       (name->len <= 8 || goes_on(scratch, name, off));
}

static __always_inline bool is_blank(__u8 octet)
{
	return octet == ' ' || octet == '\t' || octet == '\r';
}

/* Where a part begins without the blanks before it; an octet that is one, where there are too many. */
__noinline __u32 skip_blanks(struct scratch *scratch, __u32 off, __u32 end)
{
	if (!scratch)
		return off;
	for (int i = 0; i < MAX_BLANKS; i++) {
		if (off >= end || !is_blank(*at(scratch, off)))
			break;
		off++;
	}
	return off;
}

/* Where a part ends without the blanks behind it; an octet that is one, where there are too many. */
__noinline __u32 cut_blanks(struct scratch *scratch, __u32 off, __u32 end)
{
	if (!scratch)
		return end;
	for (int i = 0; i < MAX_BLANKS; i++) {
		if (off >= end || !is_blank(*at(scratch, end - 1)))
			break;
		end--;
	}
	return end;
}

/* Take away the blanks around a part. Returns: whether there were not too many of them.
 *
 * Nearly always there is one on either side, of a header's value and its line's end: no call.
 */
static __always_inline bool strip(struct scratch *scratch, struct part *part)
{
	if (part->off < part->end && is_blank(*at(scratch, part->off)))
		part->off++;
	if (part->off < part->end && is_blank(*at(scratch, part->end - 1)))
		part->end--;
	if (part->off >= part->end)
		return true;
	if (is_blank(*at(scratch, part->off)))
		part->off = skip_blanks(scratch, part->off, part->end);
	if (part->off < part->end && is_blank(*at(scratch, part->end - 1)))
		part->end = cut_blanks(scratch, part->off, part->end);
	return part->off >= part->end || (!is_blank(*at(scratch, part->off)) &&
					  !is_blank(*at(scratch, part->end - 1)));
}
