/* The libfuse that pyfuse3 has loaded: its functions, and what it imports itself. */
#ifndef GODWIT_LIBFUSE_H
#define GODWIT_LIBFUSE_H

#include <stdbool.h>

/* libfuse's own function of this name; NULL if there is none, or no libfuse is loaded. */
void *libfuse_function(const char *name);

/* From now on libfuse calls *replacement* where it has called *name* of another library, in all its sessions. False, and nothing
 * is changed, if it imports nothing of that name. */
bool libfuse_replace_import(const char *name, void *replacement);

#endif
