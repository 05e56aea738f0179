/* Names and attributes that the kernel was told, and may be told again: see docs/passthrough.md, *Answers without Python*.
 *
 * Python puts here what it has told the kernel, with the time until which that may be believed, and takes it out when it may not;
 * meanwhile FUSE_LOOKUP and FUSE_GETATTR are answered from here, and
 * questions for extended attributes that are not there. Nothing here knows Python or the kernel: messages and the time go
 * in, answers come out. What is too much for the bounds takes the place of what came first. Not safe for several threads at once.
 */
#ifndef GODWIT_NAMES_H
#define GODWIT_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NAMES_ATTRIBUTES_BYTES = 88, NAMES_ANSWER_BYTES = 144, NAMES_NAME_MAX = 255 };

struct names {
    struct names_node *nodes;   /* places, `nodes_max` of them */
    struct names_entry *entries;
    int32_t *node_buckets, *entry_buckets; /* first places, or -1 */
    int32_t free_node, free_entry;         /* first of a chain, or -1 */
    size_t nodes_max, entries_max;
    size_t nodes_taken, entries_taken;     /* places that were ever taken: those from here on are new */
    size_t next_node, next_entry;          /* which gives way next when all are taken */
    uint64_t answered;                     /* requests, so far */
};

/* False: no memory. */
bool names_init(struct names *names, size_t nodes_max, size_t entries_max);
void names_destroy(struct names *names);

/* Of which kinds an inode may have extended attributes. */
enum names_xattrs { NAMES_CAPABILITY = 1, NAMES_ACCESS_ACL = 2, NAMES_DEFAULT_ACL = 4, NAMES_OTHER = 32, NAMES_UNKNOWN = -1 };

/* The attributes of an inode, as FUSE_GETATTR returns them, and its `names_xattrs`, until a time. */
void names_put_attributes(struct names *names, uint64_t ino, const unsigned char attributes[NAMES_ATTRIBUTES_BYTES], int xattrs,
                          int64_t until_ns);

/* What a name is in a directory until a time; inode 0: there is none of that name. */
void names_put_name(struct names *names, uint64_t parent, const void *name, size_t length, uint64_t ino, int64_t until_ns);

/* Takes out the attributes of an inode, and all names in it. */
void names_drop(struct names *names, uint64_t ino);

void names_drop_name(struct names *names, uint64_t parent, const void *name, size_t length);

/* Takes out all names, of all directories. */
void names_drop_names(struct names *names);

/* Answers a request at the time *now_ns*: the length of the answer, 0 if it cannot be answered from here. */
size_t names_answer(struct names *names, const void *message, size_t length, int64_t now_ns, unsigned char answer[NAMES_ANSWER_BYTES]);

#endif
