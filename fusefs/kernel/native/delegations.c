#include "delegations.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "messages.h"

/* From include/uapi/linux/fuse.h of Linux 6.9, as those in messages.h. */

enum { OP_OPEN = 14, OP_RELEASE = 18 };
enum { RELEASE_FLOCK_UNLOCK = 1 << 1 };

struct open_in {
    uint32_t flags, open_flags;
};

struct release_in {
    uint64_t handle;
    uint32_t flags, release_flags;
    uint64_t lock_owner;
};

_Static_assert(sizeof(struct open_in) == 8, "FUSE_OPEN");
_Static_assert(sizeof(struct release_in) == 24, "FUSE_RELEASE");
_Static_assert(sizeof(struct out_header) + sizeof(struct open_out) == DELEGATIONS_ANSWER_BYTES, "the longest answer");

/* What makes an open more than reading: it changes the file, or wants another way of reading than the answer gives. */
enum { NOT_JUST_READING = O_ACCMODE | O_TRUNC | O_APPEND | O_DIRECT | O_DSYNC };

struct delegations_inode {
    struct delegation is;
    int32_t first_open; /* or -1 */
    int32_t next;       /* in its bucket, or among the free ones */
    bool used;          /* opened since `delegations_used` was asked last */
};

struct delegations_open {
    uint64_t number;
    int32_t inode;            /* its place; -1: this place is free */
    int32_t before, after;    /* others of the same inode, or -1 */
    int32_t next;             /* in its bucket, or among the free ones */
};

static size_t bucket_of(uint64_t key, size_t buckets)
{
    return (size_t)((key * UINT64_C(0x9E3779B97F4A7C15)) >> 32) % buckets;
}

/* ----------------------------------------------------------------------------------------------------------- memory */

bool delegations_init(struct delegations *delegations, size_t inodes_max, size_t opens_max)
{
    *delegations = (struct delegations){.inodes_max = inodes_max, .opens_max = opens_max, .free_inode = -1, .free_open = -1};
    delegations->next_number = DELEGATIONS_FIRST;
    delegations->inodes = calloc(inodes_max, sizeof *delegations->inodes);
    delegations->opens = calloc(opens_max, sizeof *delegations->opens);
    delegations->inode_buckets = malloc(inodes_max * sizeof *delegations->inode_buckets);
    delegations->open_buckets = malloc(opens_max * sizeof *delegations->open_buckets);
    if (!delegations->inodes || !delegations->opens || !delegations->inode_buckets || !delegations->open_buckets) {
        delegations_destroy(delegations);
        return false;
    }
    for (size_t at = 0; at < inodes_max; at++) {
        delegations->inode_buckets[at] = -1;
        delegations->inodes[at].next = delegations->free_inode;
        delegations->free_inode = (int32_t)at;
    }
    for (size_t at = 0; at < opens_max; at++) {
        delegations->open_buckets[at] = -1;
        delegations->opens[at].inode = -1;
        delegations->opens[at].next = delegations->free_open;
        delegations->free_open = (int32_t)at;
    }
    return true;
}

void delegations_destroy(struct delegations *delegations)
{
    free(delegations->inodes);
    free(delegations->opens);
    free(delegations->inode_buckets);
    free(delegations->open_buckets);
    *delegations = (struct delegations){.free_inode = -1, .free_open = -1};
}

/* ----------------------------------------------------------------------------------------------------------- places */

/* The place of an inode's delegation, or -1. */
static int32_t find_inode(const struct delegations *delegations, uint64_t ino)
{
    /* 0 is no inode: a free place has it. */
    if (delegations->inodes_max == 0 || ino == 0)
        return -1;
    int32_t at = delegations->inode_buckets[bucket_of(ino, delegations->inodes_max)];
    while (at >= 0 && delegations->inodes[at].is.ino != ino)
        at = delegations->inodes[at].next;
    return at;
}

/* The place of an open, or -1. */
static int32_t find_open(const struct delegations *delegations, uint64_t number)
{
    if (delegations->opens_max == 0 || number < DELEGATIONS_FIRST)
        return -1;
    int32_t at = delegations->open_buckets[bucket_of(number, delegations->opens_max)];
    while (at >= 0 && delegations->opens[at].number != number)
        at = delegations->opens[at].next;
    return at;
}

static bool add_open(struct delegations *delegations, int32_t inode, uint64_t *number)
{
    const int32_t at = delegations->free_open;
    if (at < 0)
        return false;
    struct delegations_open *open = &delegations->opens[at];
    struct delegations_inode *of = &delegations->inodes[inode];
    delegations->free_open = open->next;
    *number = delegations->next_number++;
    int32_t *bucket = &delegations->open_buckets[bucket_of(*number, delegations->opens_max)];
    *open = (struct delegations_open){.number = *number, .inode = inode, .before = -1, .after = of->first_open, .next = *bucket};
    *bucket = at;
    if (of->first_open >= 0)
        delegations->opens[of->first_open].before = at;
    of->first_open = at;
    return true;
}

static void remove_open(struct delegations *delegations, int32_t at)
{
    struct delegations_open *open = &delegations->opens[at];
    if (open->before >= 0)
        delegations->opens[open->before].after = open->after;
    else
        delegations->inodes[open->inode].first_open = open->after;
    if (open->after >= 0)
        delegations->opens[open->after].before = open->before;
    int32_t *link = &delegations->open_buckets[bucket_of(open->number, delegations->opens_max)];
    while (*link != at)
        link = &delegations->opens[*link].next;
    *link = open->next;
    *open = (struct delegations_open){.inode = -1, .next = delegations->free_open};
    delegations->free_open = at;
}

/* ------------------------------------------------------------------------------------------------------ delegations */

bool delegations_put(struct delegations *delegations, const struct delegation *delegation)
{
    int32_t at = find_inode(delegations, delegation->ino);
    if (at >= 0) {
        delegations->inodes[at].is = *delegation;
        return true;
    }
    at = delegations->free_inode;
    if (at < 0 || delegation->ino == 0)
        return false;
    struct delegations_inode *inode = &delegations->inodes[at];
    delegations->free_inode = inode->next;
    int32_t *bucket = &delegations->inode_buckets[bucket_of(delegation->ino, delegations->inodes_max)];
    *inode = (struct delegations_inode){.is = *delegation, .first_open = -1, .next = *bucket};
    *bucket = at;
    return true;
}

void delegations_suspend(struct delegations *delegations, uint64_t ino)
{
    const int32_t at = find_inode(delegations, ino);
    if (at >= 0)
        delegations->inodes[at].is.until_ns = 0;
}

bool delegations_take_open(struct delegations *delegations, uint64_t ino, uint64_t *number)
{
    const int32_t at = find_inode(delegations, ino);
    if (at < 0 || delegations->inodes[at].first_open < 0)
        return false;
    *number = delegations->opens[delegations->inodes[at].first_open].number;
    remove_open(delegations, delegations->inodes[at].first_open);
    return true;
}

bool delegations_end(struct delegations *delegations, uint64_t ino)
{
    const int32_t at = find_inode(delegations, ino);
    if (at < 0 || delegations->inodes[at].first_open >= 0)
        return false;
    int32_t *link = &delegations->inode_buckets[bucket_of(ino, delegations->inodes_max)];
    while (*link != at)
        link = &delegations->inodes[*link].next;
    *link = delegations->inodes[at].next;
    delegations->inodes[at] = (struct delegations_inode){.first_open = -1, .next = delegations->free_inode};
    delegations->free_inode = at;
    return true;
}

uint64_t delegations_inode_of(const struct delegations *delegations, uint64_t number)
{
    const int32_t at = find_open(delegations, number);
    return at < 0 ? 0 : delegations->inodes[delegations->opens[at].inode].is.ino;
}

uint64_t delegations_used(struct delegations *delegations, size_t *at)
{
    while (*at < delegations->inodes_max) {
        struct delegations_inode *inode = &delegations->inodes[(*at)++];
        const bool used = inode->used || inode->first_open >= 0;
        inode->used = false;
        if (inode->is.ino != 0 && used)
            return inode->is.ino;
    }
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- messages */

static size_t set_answer(unsigned char answer[DELEGATIONS_ANSWER_BYTES], uint64_t unique, const struct open_out *body)
{
    const size_t length = sizeof(struct out_header) + (body ? sizeof *body : 0);
    const struct out_header header = {(uint32_t)length, 0, unique};
    memcpy(answer, &header, sizeof header);
    if (body)
        memcpy(answer + sizeof header, body, sizeof *body);
    return length;
}

static size_t answer_open(struct delegations *delegations, const struct in_header *header, const struct open_in *open, int64_t now_ns,
                          delegations_check *check, unsigned char answer[DELEGATIONS_ANSWER_BYTES])
{
    const int32_t at = find_inode(delegations, header->inode);
    if (at < 0 || open->flags & NOT_JUST_READING || open->open_flags)
        return 0;
    struct delegations_inode *inode = &delegations->inodes[at];
    if (now_ns >= inode->is.until_ns)
        return 0;
    if (inode->is.descriptor >= 0 && !check(inode->is.descriptor, inode->is.size, inode->is.ctime_ns)) {
        /* Damaged, or only touched: Python has it examined. */
        inode->is.until_ns = 0;
        return 0;
    }
    struct open_out body = {.flags = inode->is.flags, .backing_id = inode->is.backing_id};
    if (!add_open(delegations, at, &body.handle))
        return 0;
    inode->used = true;
    delegations->answered++;
    return set_answer(answer, header->unique, &body);
}

static size_t answer_release(struct delegations *delegations, const struct in_header *header, const struct release_in *release,
                             unsigned char answer[DELEGATIONS_ANSWER_BYTES])
{
    const int32_t at = find_open(delegations, release->handle);
    /* Locks are Python's; it has taken back what was locked, so this does not happen. */
    if (at < 0 || release->release_flags & RELEASE_FLOCK_UNLOCK)
        return 0;
    delegations->inodes[delegations->opens[at].inode].used = true;
    remove_open(delegations, at);
    return set_answer(answer, header->unique, NULL);
}

size_t delegations_answer(struct delegations *delegations, const void *message, size_t length, int64_t now_ns, delegations_check *check,
                          unsigned char answer[DELEGATIONS_ANSWER_BYTES])
{
    struct in_header header;
    struct open_in open;
    struct release_in release;
    if (length < sizeof header)
        return 0;
    memcpy(&header, message, sizeof header);
    if (header.length != length)
        return 0;
    const unsigned char *body = (const unsigned char *)message + sizeof header;
    if (header.opcode == OP_OPEN && length - sizeof header >= sizeof open) {
        memcpy(&open, body, sizeof open);
        return answer_open(delegations, &header, &open, now_ns, check, answer);
    }
    if (header.opcode == OP_RELEASE && length - sizeof header >= sizeof release) {
        memcpy(&release, body, sizeof release);
        return answer_release(delegations, &header, &release, answer);
    }
    return 0;
}

void delegations_undo(struct delegations *delegations, const unsigned char answer[DELEGATIONS_ANSWER_BYTES], size_t length)
{
    struct open_out body;
    if (length < DELEGATIONS_ANSWER_BYTES)
        return;
    memcpy(&body, answer + sizeof(struct out_header), sizeof body);
    const int32_t at = find_open(delegations, body.handle);
    if (at >= 0)
        remove_open(delegations, at);
}
