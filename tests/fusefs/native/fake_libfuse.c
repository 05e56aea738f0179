/* What the extension looks for in a libfuse, and no more: see tests/fusefs/test_hooking.py. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct fuse_buf {
    size_t size;
    int flags;
    void *memory;
};

enum { BUFFER_BYTES = 8192 };

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

int fuse_session_receive_buf(void *session, struct fuse_buf *buffer)
{
    if (buffer->memory == NULL)
        buffer->memory = malloc(BUFFER_BYTES);
    ssize_t count = read(fuse_session_fd(session), buffer->memory, BUFFER_BYTES);
    buffer->size = count > 0 ? (size_t)count : 0;
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
