/* The messages between the kernel and libfuse, and what Godwit changes in them: see docs/passthrough.md.
 *
 * Nothing here knows Python, descriptors or libfuse: messages go in, and what is to be done with them comes out. Not safe for
 * several threads at once.
 */
#ifndef GODWIT_STREAM_H
#define GODWIT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum stream_verdict {
    STREAM_PASS,   /* libfuse gets the request */
    STREAM_TAKE,   /* Godwit answers it */
    STREAM_ANSWER, /* answered by `stream.answer` */
};

enum stream_kind { STREAM_FILE, STREAM_DIRECTORY };

enum { STREAM_ANSWER_BYTES = 16, STREAM_PATCHED_BYTES = 256, STREAM_WRITE_BYTES = 80 };

#define STREAM_DROPPED SIZE_MAX /* of a reply that nobody waits for any more */

/* A map from numbers to numbers. */
struct stream_map {
    struct stream_slot {
        uint64_t key;
        uint64_t value;
        uint64_t inode; /* of a request */
        bool used;
    } *slots;
    size_t capacity; /* a power of two, or 0 */
    size_t count;
};

struct stream {
    uint64_t wanted;         /* flags for the reply to FUSE_INIT, as far as the kernel offers them */
    uint64_t taken;          /* requests for Godwit: bit n for opcode n */
    uint64_t offered;        /* by the kernel; 0 before FUSE_INIT */
    uint64_t granted;        /* what the kernel was told beyond libfuse's own flags; 0 before the reply */
    struct stream_map asked; /* requests whose replies are looked at: their opcodes by their unique numbers */
    struct stream_map opens; /* for replies to opens: flags and backing ids by handles */
    struct stream_map under_way; /* requests that have no answer yet, by their unique numbers */
    struct stream_map watched;   /* inodes whose FUSE_FLUSH is for Godwit */
    struct stream_map killing;   /* inodes with a write that takes the set-id bits, of which nobody has asked yet */
    unsigned char answer[STREAM_ANSWER_BYTES];
    uint64_t passed;         /* the unique number of the request that libfuse got last; 0 if that is not known */
    struct stream_dropped {
        bool is_open; /* the reply that was dropped last would have opened something */
        enum stream_kind kind;
        uint64_t handle;
    } dropped;
};

/* Who waits for what. */
struct stream_waiter {
    uint32_t opcode, pid;
    uint64_t inode;
};

void stream_init(struct stream *stream, uint64_t wanted, uint64_t taken);
void stream_destroy(struct stream *stream);

/* What is to be done with a request that was read from the kernel. */
enum stream_verdict stream_request(struct stream *stream, const void *message, size_t length);

/* Notes a FUSE_WRITE that libfuse gets, of which the beginning is enough, and whether it takes the set-id bits away
 * (FUSE_WRITE_KILL_SUIDGID). */
void stream_look_at_write(struct stream *stream, const void *beginning, size_t length);

/* Whether a write of the inode that was received since the last question takes them. */
bool stream_kills_set_id(struct stream *stream, uint64_t inode);

/* Who waits for the answer to a request. False: it has been answered. */
bool stream_whose(const struct stream *stream, uint64_t unique, struct stream_waiter *waiter);

/* A request is answered past whoever has it: what is answered later is dropped. False: it has been answered already. */
bool stream_abandon(struct stream *stream, uint64_t unique);

/* Godwit answers a request that it took. False: the answer is to be dropped. */
bool stream_answered(struct stream *stream, uint64_t unique);

/* Godwit could not take a request that was for it: `stream.answer` becomes this error. */
void stream_failed(struct stream *stream, const void *message, int error);

/* Godwit does not answer a request that was for it: libfuse gets it. */
void stream_declined(struct stream *stream, const void *message);

/* The reply to the coming open that returns this handle gets these flags and this backing id (0: none). False: no memory. */
bool stream_will_open(struct stream *stream, enum stream_kind kind, uint64_t handle, uint32_t flags, uint32_t backing_id);

/* Whether FUSE_FLUSH of an inode is for Godwit; else it is answered at once. False: no memory. */
bool stream_watch(struct stream *stream, uint64_t inode, bool wanted);

/* Looks at a reply. Returns the length of the changed message in *patched*, 0 if it goes out as it is, STREAM_DROPPED if it is to be
 * dropped: `stream.dropped` says what that would have opened. */
size_t stream_reply(struct stream *stream, const struct iovec *parts, int count, unsigned char patched[STREAM_PATCHED_BYTES]);

#endif
