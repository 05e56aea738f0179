/* The parts of the kernel's messages that several modules read: from include/uapi/linux/fuse.h of Linux 6.9, whose structures only
 * ever grow at the end.
 */
#ifndef GODWIT_MESSAGES_H
#define GODWIT_MESSAGES_H

#include <stdint.h>

struct in_header {
    uint32_t length;
    uint32_t opcode;
    uint64_t unique;
    uint64_t inode;
    uint32_t uid, gid, pid;
    uint16_t extensions, padding;
};

struct out_header {
    uint32_t length;
    int32_t error;
    uint64_t unique;
};

struct open_out {
    uint64_t handle;
    uint32_t flags;
    uint32_t backing_id;
};

_Static_assert(sizeof(struct in_header) == 40 && sizeof(struct out_header) == 16, "headers");
_Static_assert(sizeof(struct open_out) == 16, "FUSE_OPEN");

#endif
