/* What the extension looks for in a libfuse, and no more: see tests/fusefs/kernel/test_hooking.py. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct fuse_buf {
    size_t size;
    int flags;
    void *memory;
    int descriptor;
};

struct fuse_in_header {
    unsigned int length, opcode;
};

enum { BUFFER_BYTES = 8192, PIPED_BYTES = 4096, FUSE_WRITE = 16, FUSE_BUF_IS_FD = 1 << 1 };

int mounted;

int fuse_session_mount(void *session, const char *mountpoint)
{
    mounted = session != NULL && strcmp(mountpoint, "/mnt") == 0;
    return mounted ? 0 : -1;
}

int fuse_session_fd(void *session)
{
    return *(int *)session;
}

/* As libfuse leaves what is long. */
static void leave_in_pipe(struct fuse_buf *buffer)
{
    int ends[2];
    if (pipe(ends) != 0 || write(ends[1], buffer->memory, buffer->size) != (ssize_t)buffer->size)
        abort();
    close(ends[1]);
    buffer->flags = FUSE_BUF_IS_FD;
    buffer->descriptor = ends[0];
}

int fuse_session_receive_buf(void *session, struct fuse_buf *buffer)
{
    if (buffer->memory == NULL)
        buffer->memory = malloc(BUFFER_BYTES);
    ssize_t count = read(fuse_session_fd(session), buffer->memory, BUFFER_BYTES);
    buffer->size = count > 0 ? (size_t)count : 0;
    buffer->flags = 0;
    const struct fuse_in_header *header = buffer->memory;
    if (count >= PIPED_BYTES && header->opcode == FUSE_WRITE)
        leave_in_pipe(buffer);
    return count < 0 ? -errno : (int)count;
}

int reply(int descriptor, void *message, size_t length)
{
#ifdef WRITES_OTHERWISE
    return (int)write(descriptor, message, length);
#else
    struct iovec part = {message, length};
    return (int)writev(descriptor, &part, 1);
#endif
}
