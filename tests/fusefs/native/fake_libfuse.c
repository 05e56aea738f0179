/* What the extension looks for in a libfuse, and no more: see tests/fusefs/test_hooking.py. */
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

struct custom_io {
    ssize_t (*writev)(int, struct iovec *, int, void *);
    ssize_t (*read)(int, void *, size_t, void *);
    void *splice_receive, *splice_send;
};

struct custom_io given;
size_t given_size;
int mounted, answer;

int fuse_session_mount(void *session, const char *mountpoint)
{
    mounted = session != NULL && strcmp(mountpoint, "/mnt") == 0;
    return mounted ? 0 : -1;
}

int fuse_session_fd(void *session)
{
    return *(int *)session;
}

#ifdef CUSTOM_IO
int fuse_session_custom_io(void *session, const struct custom_io *io, int descriptor)
{
    given = *io;
    given_size = sizeof *io;
    return descriptor == fuse_session_fd(session) ? answer : -1;
}
#endif

#ifdef CUSTOM_IO_317
int fuse_session_custom_io_317(void *session, const struct custom_io *io, size_t size, int descriptor)
{
    given = *io;
    given_size = size;
    return descriptor == fuse_session_fd(session) ? answer : -1;
}
#endif
