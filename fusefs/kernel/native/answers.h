/* What the extension answers the kernel without Python (`delegations.c`, `names.c`), and the functions by which Python decides what
 * that is. All of it is used by the event loop's thread alone, as the stream is.
 */
#ifndef GODWIT_ANSWERS_H
#define GODWIT_ANSWERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How much there may be: delegated inodes, inodes with attributes, names. 0: none. */
struct answers_bounds {
    Py_ssize_t delegated, nodes, names;
};

/* Forgets everything. False: no memory. */
bool answers_prepare(const struct answers_bounds *bounds);

/* Whether a request was answered, by writing to the device, at a time of CLOCK_MONOTONIC. */
bool answers_give(int device, const void *message, size_t length, int64_t now_ns);

extern PyMethodDef answers_methods[];

#endif
