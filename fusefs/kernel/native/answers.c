#include "answers.h"

#include <sys/stat.h>
#include <unistd.h>

#include "delegations.h"
#include "names.h"

enum { OPENS_EACH = 4 }; /* of each delegated inode, on average; further ones are Python's */

static struct delegations delegations;
static struct names names;

bool answers_prepare(const struct answers_bounds *bounds)
{
    const size_t delegated = bounds->delegated > 0 ? (size_t)bounds->delegated : 0;
    const size_t nodes = bounds->nodes > 0 ? (size_t)bounds->nodes : 0, known = bounds->names > 0 ? (size_t)bounds->names : 0;
    delegations_destroy(&delegations);
    names_destroy(&names);
    return (delegated == 0 || delegations_init(&delegations, delegated, delegated * OPENS_EACH)) &&
           (nodes == 0 || known == 0 || names_init(&names, nodes, known));
}

static bool is_unchanged(int descriptor, int64_t size, int64_t ctime_ns)
{
    struct stat status;
    return fstat(descriptor, &status) == 0 && status.st_size == size &&
           (int64_t)status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec == ctime_ns;
}

bool answers_give(int device, const void *message, size_t length, int64_t now_ns)
{
    unsigned char opened[DELEGATIONS_ANSWER_BYTES], told[NAMES_ANSWER_BYTES];
    size_t answered = delegations_answer(&delegations, message, length, now_ns, is_unchanged, opened);
    if (answered != 0) {
        if (write(device, opened, answered) < 0)
            delegations_undo(&delegations, opened, answered);
        return true;
    }
    answered = names_answer(&names, message, length, now_ns, told);
    if (answered == 0)
        return false;
    /* Fails only when the kernel does not wait any more. */
    (void)!write(device, told, answered);
    return true;
}

/* ------------------------------------------------------------------------------------------------- delegated opens */

static PyObject *delegate(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    long long size, ctime_ns, until_ns;
    struct delegation delegation = {0};
    if (!PyArg_ParseTuple(args, "KiIILLL", &inode, &delegation.descriptor, &delegation.flags, &delegation.backing_id, &size, &ctime_ns,
                          &until_ns))
        return NULL;
    delegation.ino = inode;
    delegation.size = size;
    delegation.ctime_ns = ctime_ns;
    delegation.until_ns = until_ns;
    return PyBool_FromLong(delegations_put(&delegations, &delegation));
}

static PyObject *suspend(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    delegations_suspend(&delegations, inode);
    Py_RETURN_NONE;
}

/* Appends a number, which may be NULL for lack of memory, to a list, which is dropped if that fails. */
static PyObject *with_number(PyObject *list, PyObject *number)
{
    if (number == NULL || PyList_Append(list, number) != 0)
        Py_CLEAR(list);
    Py_XDECREF(number);
    return list;
}

static PyObject *take_back(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    PyObject *opens = PyList_New(0);
    uint64_t number;
    while (opens != NULL && delegations_take_open(&delegations, inode, &number))
        opens = with_number(opens, PyLong_FromUnsignedLongLong(number));
    delegations_end(&delegations, inode);
    return opens;
}

static PyObject *delegated_inode(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long number;
    if (!PyArg_ParseTuple(args, "K", &number))
        return NULL;
    return PyLong_FromUnsignedLongLong(delegations_inode_of(&delegations, number));
}

static PyObject *used_inodes(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    PyObject *inodes = PyList_New(0);
    uint64_t inode;
    for (size_t at = 0; inodes != NULL && (inode = delegations_used(&delegations, &at)) != 0;)
        inodes = with_number(inodes, PyLong_FromUnsignedLongLong(inode));
    return inodes;
}

/* -------------------------------------------------------------------------------------------- names and attributes */

static PyObject *put_attributes(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    Py_buffer attributes;
    int xattrs;
    long long until_ns;
    if (!PyArg_ParseTuple(args, "Ky*iL", &inode, &attributes, &xattrs, &until_ns))
        return NULL;
    const bool fits = attributes.len == NAMES_ATTRIBUTES_BYTES;
    if (fits)
        names_put_attributes(&names, inode, attributes.buf, xattrs, until_ns);
    PyBuffer_Release(&attributes);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "attributes have %d bytes", NAMES_ATTRIBUTES_BYTES);
    Py_RETURN_NONE;
}

static PyObject *put_name(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long parent, inode;
    const char *name;
    Py_ssize_t length;
    long long until_ns;
    if (!PyArg_ParseTuple(args, "Ky#KL", &parent, &name, &length, &inode, &until_ns))
        return NULL;
    names_put_name(&names, parent, name, (size_t)length, inode, until_ns);
    Py_RETURN_NONE;
}

static PyObject *drop(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    names_drop(&names, inode);
    Py_RETURN_NONE;
}

static PyObject *drop_name(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long parent;
    const char *name;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "Ky#", &parent, &name, &length))
        return NULL;
    names_drop_name(&names, parent, name, (size_t)length);
    Py_RETURN_NONE;
}

static PyObject *drop_names(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    names_drop_names(&names);
    Py_RETURN_NONE;
}

static PyObject *answered_alone(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return Py_BuildValue("KK", (unsigned long long)delegations.answered, (unsigned long long)names.answered);
}

PyMethodDef answers_methods[] = {
    {"delegate", delegate, METH_VARARGS,
     "delegate(inode, descriptor, flags, backing_id, size, ctime_ns, until_ns): opens of it to read are answered like this, until a time "
     "of CLOCK_MONOTONIC and as long as the descriptor's file has this size and change time; False: there are too many."},
    {"suspend", suspend, METH_VARARGS, "suspend(inode): its opens are Python's for now."},
    {"take_back", take_back, METH_VARARGS, "take_back(inode): its opens are Python's; the handles of those that are open."},
    {"delegated_inode", delegated_inode, METH_VARARGS, "delegated_inode(handle): of what a handle is that `take_back` would return, or 0."},
    {"used_inodes", used_inodes, METH_NOARGS, "used_inodes(): the delegated inodes that are open, or were since this was asked last."},
    {"put_attributes", put_attributes, METH_VARARGS, "put_attributes(inode, attributes, xattrs, until_ns): what FUSE_GETATTR is answered with, and of which kinds there may be extended "
     "attributes; -1: any."},
    {"put_name", put_name, METH_VARARGS, "put_name(directory, name, inode, until_ns): what FUSE_LOOKUP finds; inode 0: nothing."},
    {"drop", drop, METH_VARARGS, "drop(inode): its attributes, and names in it, are Python's to tell."},
    {"drop_name", drop_name, METH_VARARGS, "drop_name(directory, name): that name is."},
    {"drop_names", drop_names, METH_NOARGS, "drop_names(): all names are."},
    {"answered_alone", answered_alone, METH_NOARGS, "answered_alone(): how many opens, and how many other requests, so far."},
    {NULL, NULL, 0, NULL},
};
