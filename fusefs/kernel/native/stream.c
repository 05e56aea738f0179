#include "stream.h"

#include <stdlib.h>
#include <string.h>

#include "messages.h"

/* From include/uapi/linux/fuse.h of Linux 6.9, as those in messages.h. */

enum opcode {
    OP_FORGET = 2,
    OP_OPEN = 14,
    OP_WRITE = 16,
    OP_FLUSH = 25,
    OP_INIT = 26,
    OP_OPENDIR = 27,
    OP_CREATE = 35,
    OP_INTERRUPT = 36,
    OP_NOTIFY_REPLY = 41,
    OP_BATCH_FORGET = 42,
};

#define INIT_EXT (UINT64_C(1) << 30)
#define PASSTHROUGH (UINT64_C(1) << 37)
#define WRITEBACK_CACHE (UINT64_C(1) << 16)
#define WRITE_KILL_SUIDGID (UINT32_C(1) << 2)

struct init_in {
    uint32_t major, minor, max_readahead, flags, flags2;
};

struct init_out {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_granularity;
    uint16_t max_pages, map_alignment;
    uint32_t flags2, max_stack_depth;
};

struct write_in {
    uint64_t handle, offset;
    uint32_t size, write_flags;
    uint64_t lock_owner;
    uint32_t flags, padding;
};

enum { ENTRY_OUT_BYTES = 128 }; /* what precedes open_out in the reply to FUSE_CREATE */

/* What is noted of a request that has no answer yet: its opcode, whether it is abandoned, and in the upper half who waits for it. */
enum { OPCODE_MAX = 255, ABANDONED = 1 << 8 };

_Static_assert(sizeof(struct init_in) == 20 && sizeof(struct init_out) == 40, "FUSE_INIT");
_Static_assert(sizeof(struct in_header) + sizeof(struct write_in) == STREAM_WRITE_BYTES, "FUSE_WRITE");
_Static_assert(sizeof(struct out_header) == STREAM_ANSWER_BYTES, "an answer without a body");

/* ---------------------------------------------------------------------------------------------------------------- maps */

static size_t place_of(const struct stream_map *map, uint64_t key)
{
    uint64_t hash = key * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(hash >> 32) & (map->capacity - 1);
}

static struct stream_slot *map_find(const struct stream_map *map, uint64_t key)
{
    if (map->count == 0)
        return NULL;
    for (size_t at = place_of(map, key); map->slots[at].used; at = (at + 1) & (map->capacity - 1))
        if (map->slots[at].key == key)
            return &map->slots[at];
    return NULL;
}

static void map_insert(struct stream_map *map, struct stream_slot slot)
{
    size_t at = place_of(map, slot.key);
    while (map->slots[at].used)
        at = (at + 1) & (map->capacity - 1);
    map->slots[at] = slot;
    map->count++;
}

static bool map_grow(struct stream_map *map)
{
    struct stream_map larger = {.capacity = map->capacity ? map->capacity * 2 : 64};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (larger.slots == NULL)
        return false;
    for (size_t at = 0; at < map->capacity; at++)
        if (map->slots[at].used)
            map_insert(&larger, map->slots[at]);
    free(map->slots);
    *map = larger;
    return true;
}

static bool map_put_slot(struct stream_map *map, struct stream_slot slot)
{
    struct stream_slot *known = map_find(map, slot.key);
    if (known != NULL) {
        *known = slot;
        return true;
    }
    if (map->count * 2 >= map->capacity && !map_grow(map))
        return false;
    map_insert(map, slot);
    return true;
}

static bool map_put(struct stream_map *map, uint64_t key, uint64_t value)
{
    return map_put_slot(map, (struct stream_slot){.key = key, .value = value, .used = true});
}

/* Takes a number out, and with *value* says what it was; moves what had to go elsewhere because of it back. */
static bool map_take(struct stream_map *map, uint64_t key, uint64_t *value)
{
    struct stream_slot *found = map_find(map, key);
    if (found == NULL)
        return false;
    if (value != NULL)
        *value = found->value;
    size_t hole = (size_t)(found - map->slots), mask = map->capacity - 1;
    for (size_t at = (hole + 1) & mask; map->slots[at].used; at = (at + 1) & mask) {
        size_t home = place_of(map, map->slots[at].key);
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            map->slots[hole] = map->slots[at];
            hole = at;
        }
    }
    map->slots[hole].used = false;
    map->count--;
    return true;
}

/* -------------------------------------------------------------------------------------------------------------- stream */

void stream_init(struct stream *stream, uint64_t wanted, uint64_t taken)
{
    *stream = (struct stream){.wanted = wanted, .taken = taken};
}

void stream_destroy(struct stream *stream)
{
    free(stream->asked.slots);
    free(stream->opens.slots);
    free(stream->under_way.slots);
    free(stream->watched.slots);
    free(stream->killing.slots);
    *stream = (struct stream){0};
}

static bool is_taken(const struct stream *stream, uint32_t opcode)
{
    return opcode < 64 && (stream->taken >> opcode & 1);
}

static void set_answer(struct stream *stream, uint64_t unique, int error)
{
    const struct out_header header = {sizeof header, -error, unique};
    memcpy(stream->answer, &header, sizeof header);
}

static void look_at_init(struct stream *stream, const unsigned char *body, size_t length)
{
    struct init_in init = {0};
    memcpy(&init, body, length < sizeof init ? length : sizeof init);
    stream->offered = init.flags;
    if (init.flags & INIT_EXT && length >= sizeof init)
        stream->offered |= (uint64_t)init.flags2 << 32;
}

static bool has_answer(uint32_t opcode)
{
    return opcode <= OPCODE_MAX && opcode != OP_FORGET && opcode != OP_INTERRUPT && opcode != OP_NOTIFY_REPLY && opcode != OP_BATCH_FORGET;
}

/* False: no memory. */
static bool note_under_way(struct stream *stream, const struct in_header *header)
{
    const uint64_t value = (uint64_t)header->pid << 32 | header->opcode;
    return map_put_slot(&stream->under_way, (struct stream_slot){header->unique, value, header->inode, true});
}

/* Without memory it cannot be interrupted. */
static enum stream_verdict pass(struct stream *stream, const struct in_header *header)
{
    if (has_answer(header->opcode) && note_under_way(stream, header))
        stream->passed = header->unique;
    return STREAM_PASS;
}

enum stream_verdict stream_request(struct stream *stream, const void *message, size_t length)
{
    struct in_header header;
    stream->passed = 0;
    if (length < sizeof header)
        return STREAM_PASS;
    memcpy(&header, message, sizeof header);
    if (header.length != length)
        return STREAM_PASS;
    const unsigned char *body = (const unsigned char *)message + sizeof header;
    uint64_t interrupted;

    switch (header.opcode) {
    case OP_INIT:
        look_at_init(stream, body, length - sizeof header);
        map_put(&stream->asked, header.unique, header.opcode);
        return pass(stream, &header);
    case OP_WRITE:
        stream_look_at_write(stream, message, length);
        return pass(stream, &header);
    case OP_CREATE:
    case OP_OPENDIR:
        if (is_taken(stream, header.opcode))
            break;
        map_put(&stream->asked, header.unique, header.opcode);
        return pass(stream, &header);
    case OP_OPEN:
        map_put(&stream->asked, header.unique, header.opcode); /* without memory the reply is not changed */
        return pass(stream, &header);
    case OP_INTERRUPT:
        if (length - sizeof header < sizeof interrupted)
            return STREAM_PASS;
        memcpy(&interrupted, body, sizeof interrupted);
        return map_find(&stream->under_way, interrupted) != NULL ? STREAM_TAKE : STREAM_PASS;
    case OP_FLUSH:
        if (!is_taken(stream, OP_FLUSH))
            return pass(stream, &header);
        if (map_find(&stream->watched, header.inode) == NULL) {
            set_answer(stream, header.unique, 0);
            return STREAM_ANSWER;
        }
        break;
    default:
        if (!is_taken(stream, header.opcode) || header.opcode > OPCODE_MAX)
            return pass(stream, &header);
    }
    return note_under_way(stream, &header) ? STREAM_TAKE : STREAM_PASS;
}

void stream_look_at_write(struct stream *stream, const void *beginning, size_t length)
{
    struct in_header header;
    struct write_in write;
    if (length < STREAM_WRITE_BYTES)
        return;
    memcpy(&header, beginning, sizeof header);
    memcpy(&write, (const unsigned char *)beginning + sizeof header, sizeof write);
    if (header.opcode != OP_WRITE)
        return;
    pass(stream, &header);
    if (write.write_flags & WRITE_KILL_SUIDGID)
        map_put(&stream->killing, header.inode, 1);
}

bool stream_kills_set_id(struct stream *stream, uint64_t inode)
{
    return map_take(&stream->killing, inode, NULL);
}

bool stream_whose(const struct stream *stream, uint64_t unique, struct stream_waiter *waiter)
{
    const struct stream_slot *found = map_find(&stream->under_way, unique);
    if (found == NULL || found->value & ABANDONED)
        return false;
    *waiter = (struct stream_waiter){(uint32_t)found->value & OPCODE_MAX, (uint32_t)(found->value >> 32), found->inode};
    return true;
}

bool stream_abandon(struct stream *stream, uint64_t unique)
{
    struct stream_slot *found = map_find(&stream->under_way, unique);
    if (found == NULL || found->value & ABANDONED)
        return false;
    found->value |= ABANDONED;
    return true;
}

bool stream_answered(struct stream *stream, uint64_t unique)
{
    uint64_t known;
    return !map_take(&stream->under_way, unique, &known) || !(known & ABANDONED);
}

void stream_failed(struct stream *stream, const void *message, int error)
{
    struct in_header header;
    memcpy(&header, message, sizeof header);
    map_take(&stream->under_way, header.unique, NULL);
    set_answer(stream, header.unique, error);
}

void stream_declined(struct stream *stream, const void *message)
{
    struct in_header header;
    memcpy(&header, message, sizeof header);
    stream->passed = header.unique;
    if (header.opcode == OP_CREATE || header.opcode == OP_OPENDIR)
        map_put(&stream->asked, header.unique, header.opcode);
}

static uint64_t key_of(enum stream_kind kind, uint64_t handle)
{
    return handle << 1 | (kind == STREAM_DIRECTORY);
}

bool stream_will_open(struct stream *stream, enum stream_kind kind, uint64_t handle, uint32_t flags, uint32_t backing_id)
{
    return map_put(&stream->opens, key_of(kind, handle), (uint64_t)backing_id << 32 | flags);
}

bool stream_watch(struct stream *stream, uint64_t inode, bool wanted)
{
    if (wanted)
        return map_put(&stream->watched, inode, 1);
    map_take(&stream->watched, inode, NULL);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- replies */

static bool patch_init(struct stream *stream, unsigned char *body, size_t length)
{
    struct init_out init;
    if (length < sizeof init)
        return false;
    memcpy(&init, body, sizeof init);
    uint64_t granted = stream->wanted & stream->offered;
    if (init.flags & WRITEBACK_CACHE || !(stream->offered & INIT_EXT))
        granted &= ~PASSTHROUGH; /* the kernel takes one of the two */
    if (!(stream->offered & INIT_EXT))
        granted &= UINT32_MAX;
    init.flags |= (uint32_t)granted;
    if (granted >> 32) {
        if (!(init.flags & INIT_EXT))
            init.flags2 = 0;
        init.flags |= INIT_EXT;
        init.flags2 |= (uint32_t)(granted >> 32);
    }
    if (granted & PASSTHROUGH)
        init.max_stack_depth = 1; /* files on ordinary file systems, not on overlays */
    memcpy(body, &init, sizeof init);
    stream->granted = granted;
    return true;
}

static bool patch_open(struct stream *stream, enum stream_kind kind, unsigned char *body, size_t length)
{
    struct open_out open;
    uint64_t known;
    if (length < sizeof open)
        return false;
    memcpy(&open, body, sizeof open);
    stream->dropped = (struct stream_dropped){true, kind, open.handle};
    if (!map_take(&stream->opens, key_of(kind, open.handle), &known))
        return false;
    open.flags |= (uint32_t)known;
    open.backing_id = (uint32_t)(known >> 32);
    memcpy(body, &open, sizeof open);
    return true;
}

static size_t gather(const struct iovec *parts, int count, unsigned char whole[STREAM_PATCHED_BYTES])
{
    size_t length = 0;
    for (int part = 0; part < count; part++) {
        if (parts[part].iov_len > STREAM_PATCHED_BYTES - length)
            return 0;
        if (parts[part].iov_len > 0)
            memcpy(whole + length, parts[part].iov_base, parts[part].iov_len);
        length += parts[part].iov_len;
    }
    return length;
}

size_t stream_reply(struct stream *stream, const struct iovec *parts, int count, unsigned char patched[STREAM_PATCHED_BYTES])
{
    struct out_header header;
    uint64_t opcode;
    if (count < 1 || parts[0].iov_len < sizeof header)
        return 0;
    memcpy(&header, parts[0].iov_base, sizeof header);
    if (header.unique == 0)
        return 0;
    const bool dropped = !stream_answered(stream, header.unique);
    stream->dropped = (struct stream_dropped){0};
    if (!map_take(&stream->asked, header.unique, &opcode) || header.error != 0)
        return dropped ? STREAM_DROPPED : 0;
    size_t length = gather(parts, count, patched);
    if (length != header.length)
        return dropped ? STREAM_DROPPED : 0;
    unsigned char *body = patched + sizeof header;
    size_t rest = length - sizeof header;
    bool changed = false;
    if (opcode == OP_INIT)
        changed = patch_init(stream, body, rest);
    else if (opcode == OP_OPEN)
        changed = patch_open(stream, STREAM_FILE, body, rest);
    else if (opcode == OP_OPENDIR)
        changed = patch_open(stream, STREAM_DIRECTORY, body, rest);
    else if (rest > ENTRY_OUT_BYTES)
        changed = patch_open(stream, STREAM_FILE, body + ENTRY_OUT_BYTES, rest - ENTRY_OUT_BYTES);
    if (dropped)
        return STREAM_DROPPED;
    return changed ? length : 0;
}
