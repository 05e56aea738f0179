/* Files that are opened to be read, and closed again, without asking Python: see docs/passthrough.md, *Delegated opens*.
 *
 * Python delegates an inode, with what the answer to its opens is; until it takes that back, FUSE_OPEN and FUSE_RELEASE are
 * answered from here. Nothing here knows Python or the kernel: messages and the time go in, answers come out. All memory is
 * allocated at the beginning. Not safe for several threads at once.
 */
#ifndef GODWIT_DELEGATIONS_H
#define GODWIT_DELEGATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DELEGATIONS_ANSWER_BYTES = 32 };

/* What an open is answered with, and as long as what. */
struct delegation {
    uint64_t ino;
    int64_t until_ns;    /* on the clock of `delegations_answer`; 0: no open for now, closes only */
    int64_t size;        /* of the object; with another one, or another change time, it is not opened from here */
    int64_t ctime_ns;
    int descriptor;      /* of the object, open for as long as it is delegated; -1: nothing is compared */
    uint32_t flags;      /* FOPEN_… */
    uint32_t backing_id;
};

/* Whether the object behind the descriptor has still this size and change time. */
typedef bool delegations_check(int descriptor, int64_t size, int64_t ctime_ns);

struct delegations {
    struct delegations_inode *inodes; /* places, `inodes_max` of them */
    struct delegations_open *opens;   /* likewise */
    int32_t *inode_buckets, *open_buckets; /* first places, or -1 */
    int32_t free_inode, free_open;    /* first of a chain, or -1 */
    size_t inodes_max, opens_max;
    uint64_t next_number;             /* of the coming open: from DELEGATIONS_FIRST on, none is used twice */
    uint64_t answered;                /* opens, so far */
};

#define DELEGATIONS_FIRST (UINT64_C(1) << 62) /* Python counts its handles from 1 */

/* False: no memory. */
bool delegations_init(struct delegations *delegations, size_t inodes_max, size_t opens_max);
void delegations_destroy(struct delegations *delegations);

/* Begins a delegation, or changes what one says; its opens stay. False: there are too many. */
bool delegations_put(struct delegations *delegations, const struct delegation *delegation);

/* No open from here for now; closes go on. */
void delegations_suspend(struct delegations *delegations, uint64_t ino);

/* Takes one open of an inode out, and says its number. False: there is none. */
bool delegations_take_open(struct delegations *delegations, uint64_t ino, uint64_t *number);

/* Ends a delegation that has no open any more. False: there is no such delegation, or it has opens. */
bool delegations_end(struct delegations *delegations, uint64_t ino);

/* The inode of an open from here, 0 if there is none of that number. */
uint64_t delegations_inode_of(const struct delegations *delegations, uint64_t number);

/* The next inode, at or after place *at*, that is open from here or was since it was asked for last; 0 behind the last one. Moves
 * *at* behind it. */
uint64_t delegations_used(struct delegations *delegations, size_t *at);

/* Answers a request at the time *now_ns*: the length of the answer, 0 if it is not for this module. */
size_t delegations_answer(struct delegations *delegations, const void *message, size_t length, int64_t now_ns, delegations_check *check,
                          unsigned char answer[DELEGATIONS_ANSWER_BYTES]);

/* The kernel did not take the answer: what it would have opened is closed. */
void delegations_undo(struct delegations *delegations, const unsigned char answer[DELEGATIONS_ANSWER_BYTES], size_t length);

#endif
