/* fusefs.kernel._channel: puts `stream.c` between the kernel and the libfuse that pyfuse3 uses.
 *
 * The module is loaded with its symbols visible to all, before pyfuse3. So pyfuse3 calls the fuse_session_mount and
 * fuse_session_receive_buf below, which call libfuse's own: requests are looked at on their way to pyfuse3. Replies are written by
 * libfuse; its calls of writev come here as well. (libfuse has fuse_session_custom_io for both, but builds of 3.18.3 and later refuse
 * it.) If any part of that is missing, nothing is changed, and `state` says so.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "answers.h"
#include "libfuse.h"
#include "stream.h"

struct fuse_session;

/* The beginning of libfuse's struct of that name, which has been the same in all versions. */
struct fuse_buf {
    size_t size;
    int flags;
    void *memory;
    int descriptor;
};

enum { FUSE_BUF_IS_FD = 1 << 1 };
enum { FOLLOWERS_MAX = 64 };
enum { PATIENCE_NS = 60000 };     /* twice what the way through trio takes */
enum { PATIENCE_MAX_NS = 500000 }; /* while others of this process wait for the interpreter */

static struct stream stream;
static PyObject *on_request; /* called with each message that is taken out; NULL before `prepare` */
static PyObject *on_dropped; /* called with the kind and the handle of what was opened though nobody waits for it any more */
static int device = -1;      /* of the session that is hooked */
static int64_t patience_ns;  /* for how long another request is looked for after an answer */
static bool has_answered;    /* Godwit has, since the last request was received */
static int (*receive)(struct fuse_session *, struct fuse_buf *); /* libfuse's */

/* --------------------------------------------------------------------------------------------------- between the two */

/* What becomes of a request that is for Godwit: False from Python leaves it to libfuse; if Python raises, it is answered with EIO
   here. */
static enum stream_verdict hand_over(const void *message, size_t length)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallFunction(on_request, "y#", (const char *)message, (Py_ssize_t)length);
    enum stream_verdict verdict = STREAM_TAKE;
    if (result == NULL) {
        PyErr_WriteUnraisable(on_request);
        stream_failed(&stream, message, EIO);
        verdict = STREAM_ANSWER;
    } else if (result == Py_False) {
        stream_declined(&stream, message);
        verdict = STREAM_PASS;
    }
    Py_XDECREF(result);
    PyGILState_Release(state);
    return verdict;
}

/* Large writes are left in a pipe by libfuse: their beginning is read from a copy. */
static void look_into_pipe(int from)
{
    static int copy[2] = {-1, -1};
    unsigned char beginning[STREAM_WRITE_BYTES];
    stream.passed = 0;
    if (copy[0] < 0 && pipe2(copy, O_CLOEXEC | O_NONBLOCK) != 0)
        return;
    if (tee(from, copy[1], sizeof beginning, SPLICE_F_NONBLOCK) <= 0)
        return;
    ssize_t count = read(copy[0], beginning, sizeof beginning);
    if (count > 0)
        stream_look_at_write(&stream, beginning, (size_t)count);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Whether a request that was received needs nothing more from pyfuse3. */
static bool is_done(const struct fuse_buf *buffer)
{
    if (buffer->flags & FUSE_BUF_IS_FD) {
        look_into_pipe(buffer->descriptor);
        return false;
    }
    if (answers_give(device, buffer->memory, buffer->size, now_ns())) {
        has_answered = true;
        return true;
    }
    enum stream_verdict verdict = stream_request(&stream, buffer->memory, buffer->size);
    if (verdict == STREAM_TAKE)
        verdict = hand_over(buffer->memory, buffer->size);
    if (verdict == STREAM_ANSWER) {
        /* Fails only when the kernel does not wait any more. */
        (void)!write(device, stream.answer, sizeof stream.answer);
        has_answered = true;
    }
    return verdict != STREAM_PASS;
}

/* Whether another request has come, or comes at once: taken in the same step it need not wait until pyfuse3 and trio come back here.
 *
 * Who got an answer needs some microseconds to ask again. Until then it is looked for all the time: sleeping would take longer than
 * that, since a processor that rests is slow to wake. But not any more at *last_ns*, since nothing else of this process runs meanwhile. */
static bool is_followed(int64_t last_ns)
{
    struct pollfd requests = {.fd = device, .events = POLLIN};
    const int64_t begun_ns = now_ns();
    const int64_t end_ns = begun_ns + patience_ns < last_ns ? begun_ns + patience_ns : last_ns;
    do {
        if (poll(&requests, 1, 0) != 0)
            return requests.revents == POLLIN;
    } while (now_ns() < end_ns);
    return false;
}

/* To pyfuse3, a request that is not for it looks like an interrupted read. */
__attribute__((visibility("default"))) int fuse_session_receive_buf(struct fuse_session *session, struct fuse_buf *buffer)
{
    if (receive == NULL)
        *(void **)&receive = libfuse_function("fuse_session_receive_buf");
    if (receive == NULL)
        return -ENOSYS;
    const int64_t last_ns = now_ns() + PATIENCE_MAX_NS;
    for (int follower = 0; follower < FOLLOWERS_MAX; follower++) {
        has_answered = false;
        int count = receive(session, buffer);
        if (count <= 0)
            return count == -EAGAIN ? -EINTR : count;
        if (device < 0 || !is_done(buffer))
            return count;
        if (!has_answered || !is_followed(last_ns))
            break;
    }
    return -EINTR;
}

/* The reply to an open that was abandoned: whoever opened it has to close it. */
static void tell_dropped(void)
{
    if (!stream.dropped.is_open)
        return;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *directory = stream.dropped.kind == STREAM_DIRECTORY ? Py_True : Py_False;
    PyObject *result = PyObject_CallFunction(on_dropped, "OK", directory, (unsigned long long)stream.dropped.handle);
    if (result == NULL)
        PyErr_WriteUnraisable(on_dropped);
    Py_XDECREF(result);
    PyGILState_Release(state);
}

static ssize_t length_of(const struct iovec *parts, int count)
{
    size_t length = 0;
    for (int part = 0; part < count; part++)
        length += parts[part].iov_len;
    return (ssize_t)length;
}

/* Notifications come from other threads, without the interpreter's lock: stream_reply lets them pass before it looks at anything
 * that could change. */
static ssize_t libfuse_writev(int descriptor, const struct iovec *parts, int count)
{
    unsigned char patched[STREAM_PATCHED_BYTES];
    size_t length = descriptor == device ? stream_reply(&stream, parts, count, patched) : 0;
    if (length == STREAM_DROPPED) {
        tell_dropped();
        return length_of(parts, count);
    }
    if (length == 0)
        return writev(descriptor, parts, count);
    return write(descriptor, patched, length);
}

static void hook(struct fuse_session *session)
{
    int (*session_fd)(struct fuse_session *) = NULL;
    *(void **)&session_fd = libfuse_function("fuse_session_fd");
    if (on_request != NULL && session_fd != NULL && libfuse_replace_import("writev", (void *)libfuse_writev))
        device = session_fd(session);
}

__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session, const char *mountpoint)
{
    int (*mount)(struct fuse_session *, const char *) = NULL;
    *(void **)&mount = libfuse_function("fuse_session_mount");
    if (mount == NULL)
        return -1;
    int result = mount(session, mountpoint);
    if (result == 0)
        hook(session);
    return result;
}

/* ------------------------------------------------------------------------------------------------------------ Python */

/* Whether others can run beside this thread. */
static bool has_processors(void)
{
    cpu_set_t own;
    return sched_getaffinity(0, sizeof own, &own) == 0 && CPU_COUNT(&own) > 1;
}

static PyObject *prepare(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *requests, *dropped;
    unsigned long long wanted, taken;
    struct answers_bounds bounds;
    if (!PyArg_ParseTuple(args, "OOKK(nnn)", &requests, &dropped, &wanted, &taken, &bounds.delegated, &bounds.nodes, &bounds.names))
        return NULL;
    if (!answers_prepare(&bounds))
        return PyErr_NoMemory();
    stream_destroy(&stream);
    stream_init(&stream, wanted, taken);
    device = -1;
    patience_ns = has_processors() ? PATIENCE_NS : 0;
    Py_INCREF(requests);
    Py_XSETREF(on_request, requests);
    Py_INCREF(dropped);
    Py_XSETREF(on_dropped, dropped);
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

static PyObject *kills_set_id(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    return PyBool_FromLong(stream_kills_set_id(&stream, inode));
}

static PyObject *answered(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long unique;
    if (!PyArg_ParseTuple(args, "K", &unique))
        return NULL;
    has_answered = true;
    return PyBool_FromLong(stream_answered(&stream, unique));
}

static PyObject *passed(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyLong_FromUnsignedLongLong(stream.passed);
}

static PyObject *whose(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long unique;
    struct stream_waiter waiter;
    if (!PyArg_ParseTuple(args, "K", &unique))
        return NULL;
    if (!stream_whose(&stream, unique, &waiter))
        Py_RETURN_NONE;
    return Py_BuildValue("IIK", waiter.opcode, waiter.pid, (unsigned long long)waiter.inode);
}

static PyObject *abandon(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long unique;
    if (!PyArg_ParseTuple(args, "K", &unique))
        return NULL;
    return PyBool_FromLong(stream_abandon(&stream, unique));
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS,
     "prepare(on_request, on_dropped, wanted, taken, bounds): for the next session; flags of FUSE_INIT to ask for, a bit for each opcode "
     "to take, and how many inodes can be delegated, and attributes and names be kept."},
    {"state", get_state, METH_NOARGS,
     "state(): the session's descriptor or -1, the flags that the kernel offered, and those that were added to libfuse's."},
    {"will_open", will_open, METH_VARARGS,
     "will_open(is_directory, handle, flags, backing_id): what to add to the reply to the open that returns this handle."},
    {"watch_flush", watch_flush, METH_VARARGS, "watch_flush(inode, wanted): whether FUSE_FLUSH of it is taken, or answered at once."},
    {"kills_set_id", kills_set_id, METH_VARARGS,
     "kills_set_id(inode): whether a FUSE_WRITE of it since the last question takes the set-id bits away."},
    {"answered", answered, METH_VARARGS, "answered(unique): a request that was taken has its answer; False: which is to be dropped."},
    {"passed", passed, METH_NOARGS, "passed(): the number of the request that libfuse got last, 0 if it is not known."},
    {"whose", whose, METH_VARARGS, "whose(unique): opcode, thread and inode of a request that waits for its answer, or None."},
    {"abandon", abandon, METH_VARARGS, "abandon(unique): its answer is to be dropped, when it comes; False: it has come."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "fusefs.kernel._channel", "Changes the messages between the kernel and libfuse.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__channel(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddFunctions(module, answers_methods) != 0)
        Py_CLEAR(module);
    return module;
}
