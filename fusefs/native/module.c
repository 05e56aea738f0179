/* fusefs._channel: puts `stream.c` between the kernel and the libfuse that pyfuse3 uses.
 *
 * The module is loaded with its symbols visible to all, before pyfuse3. So pyfuse3 calls the fuse_session_mount below, which calls
 * libfuse's own and then has libfuse read and write through the functions here (fuse_session_custom_io, libfuse 3.14 and later).
 * If any part of that is missing, nothing is changed, and `is_hooked` says so.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <string.h>
#include <unistd.h>

#include "stream.h"

struct fuse_session;

/* What libfuse reads and writes with; the four that have been there since fuse_custom_io exists. */
struct custom_io {
    ssize_t (*writev)(int descriptor, struct iovec *parts, int count, void *userdata);
    ssize_t (*read)(int descriptor, void *buffer, size_t length, void *userdata);
    ssize_t (*splice_receive)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
    ssize_t (*splice_send)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
};

static struct stream stream;
static PyObject *on_request; /* called with each message that is taken out; NULL before `prepare` */
static int device = -1;      /* of the session that is hooked */

/* --------------------------------------------------------------------------------------------------- between the two */

/* Whether it is taken: False from Python leaves it to libfuse. */
static bool hand_over(const void *message, size_t length)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallFunction(on_request, "y#", (const char *)message, (Py_ssize_t)length);
    if (result == NULL)
        PyErr_WriteUnraisable(on_request);
    bool taken = result != Py_False;
    Py_XDECREF(result);
    PyGILState_Release(state);
    return taken;
}

/* To libfuse, a read that brought nothing for it looks interrupted: it then reads again when there is something. */
static ssize_t nothing(void)
{
    errno = EINTR;
    return -1;
}

static ssize_t channel_read(int descriptor, void *buffer, size_t length, void *userdata)
{
    (void)userdata;
    ssize_t count = read(descriptor, buffer, length);
    if (count < 0)
        return count;
    switch (stream_request(&stream, buffer, (size_t)count)) {
    case STREAM_TAKE:
        if (hand_over(buffer, (size_t)count))
            return nothing();
        stream_declined(&stream, buffer);
        break;
    case STREAM_ANSWER:
        /* Fails only when the kernel does not wait any more. */
        (void)!write(descriptor, stream.answer, sizeof stream.answer);
        return nothing();
    case STREAM_PASS:
        break;
    }
    return count;
}

/* Notifications come from other threads, without the interpreter's lock: stream_reply lets them pass before it looks at anything
 * that could change. */
static ssize_t channel_writev(int descriptor, struct iovec *parts, int count, void *userdata)
{
    unsigned char patched[STREAM_PATCHED_BYTES];
    (void)userdata;
    size_t length = stream_reply(&stream, parts, count, patched);
    if (length == 0)
        return writev(descriptor, parts, count);
    return write(descriptor, patched, length);
}

/* ----------------------------------------------------------------------------------------------------------- libfuse */

static int open_libfuse(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    if (info->dlpi_name == NULL || strstr(info->dlpi_name, "libfuse3") == NULL)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
    return *(void **)found != NULL;
}

static void hook(void *libfuse, struct fuse_session *session)
{
    const struct custom_io io = {.writev = channel_writev, .read = channel_read};
    int (*session_fd)(struct fuse_session *) = NULL;
    int (*custom_io)(struct fuse_session *, const struct custom_io *, int) = NULL;
    int (*custom_io_317)(struct fuse_session *, const struct custom_io *, size_t, int) = NULL;
    *(void **)&session_fd = dlsym(libfuse, "fuse_session_fd");
    *(void **)&custom_io = dlsym(libfuse, "fuse_session_custom_io");
    *(void **)&custom_io_317 = dlsym(libfuse, "fuse_session_custom_io_317");
    if (on_request == NULL || session_fd == NULL)
        return;
    int descriptor = session_fd(session), failed = -1;
    if (custom_io_317 != NULL)
        failed = custom_io_317(session, &io, sizeof io, descriptor);
    else if (custom_io != NULL)
        failed = custom_io(session, &io, descriptor);
    if (failed == 0)
        device = descriptor;
}

__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session, const char *mountpoint)
{
    void *libfuse = NULL;
    int (*mount)(struct fuse_session *, const char *) = NULL;
    dl_iterate_phdr(open_libfuse, &libfuse);
    if (libfuse != NULL)
        *(void **)&mount = dlsym(libfuse, "fuse_session_mount");
    if (mount == NULL)
        return -1;
    int result = mount(session, mountpoint);
    if (result == 0)
        hook(libfuse, session);
    return result;
}

/* ------------------------------------------------------------------------------------------------------------ Python */

static PyObject *prepare(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *callback;
    unsigned long long wanted, taken;
    if (!PyArg_ParseTuple(args, "OKK", &callback, &wanted, &taken))
        return NULL;
    stream_destroy(&stream);
    stream_init(&stream, wanted, taken);
    device = -1;
    Py_INCREF(callback);
    Py_XSETREF(on_request, callback);
    Py_RETURN_NONE;
}

static PyObject *get_state(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return Py_BuildValue("iKK", device, (unsigned long long)stream.offered, (unsigned long long)stream.granted);
}

static PyObject *will_open(PyObject *self, PyObject *args)
{
    (void)self;
    int directory;
    unsigned long long handle;
    unsigned int flags, backing_id;
    if (!PyArg_ParseTuple(args, "pKII", &directory, &handle, &flags, &backing_id))
        return NULL;
    if (!stream_will_open(&stream, directory ? STREAM_DIRECTORY : STREAM_FILE, handle, flags, backing_id))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *watch_flush(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    int wanted;
    if (!PyArg_ParseTuple(args, "Kp", &inode, &wanted))
        return NULL;
    if (!stream_watch(&stream, inode, wanted))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *answered(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long unique;
    if (!PyArg_ParseTuple(args, "K", &unique))
        return NULL;
    stream_answered(&stream, unique);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS,
     "prepare(on_request, wanted, taken): for the next session; flags of FUSE_INIT to ask for, and a bit for each opcode to take."},
    {"state", get_state, METH_NOARGS,
     "state(): the session's descriptor or -1, the flags that the kernel offered, and those that were added to libfuse's."},
    {"will_open", will_open, METH_VARARGS,
     "will_open(is_directory, handle, flags, backing_id): what to add to the reply to the open that returns this handle."},
    {"watch_flush", watch_flush, METH_VARARGS, "watch_flush(inode, wanted): whether FUSE_FLUSH of it is taken, or answered at once."},
    {"answered", answered, METH_VARARGS, "answered(unique): a request that was taken has its answer."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "fusefs._channel", "Changes the messages between the kernel and libfuse.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__channel(void)
{
    return PyModule_Create(&definition);
}
