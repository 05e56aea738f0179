#include "libfuse.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool is_libfuse(const struct dl_phdr_info *info)
{
    return info->dlpi_name != NULL && strstr(info->dlpi_name, "libfuse3") != NULL;
}

static int open_libfuse(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    if (!is_libfuse(info))
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
    return *(void **)found != NULL;
}

void *libfuse_function(const char *name)
{
    static void *libfuse; /* once opened it stays */
    if (libfuse == NULL)
        dl_iterate_phdr(open_libfuse, &libfuse);
    return libfuse == NULL ? NULL : dlsym(libfuse, name);
}

/* ------------------------------------------------------------------------------------------------------------- imports */

/* A library calls what it imports through slots, one for each function, which the linker has filled: its relocations say which slot
 * is whose. There are two tables of them; which one has the functions depends on how the library was built. */

struct import {
    const char *name;
    void *replacement;
    bool found;
};

struct tables {
    const ElfW(Sym) *symbols;
    const char *names;
    struct {
        const ElfW(Rela) *start;
        size_t bytes;
    } relocations[2];
    bool has_addends; /* some kinds of processors have relocations of another form */
};

static uintptr_t address_of(const struct dl_phdr_info *info, uintptr_t value)
{
    return value < info->dlpi_addr ? value + info->dlpi_addr : value; /* some linkers leave it as it is in the file */
}

static const ElfW(Dyn) *dynamic_section(const struct dl_phdr_info *info)
{
    for (int at = 0; at < info->dlpi_phnum; at++)
        if (info->dlpi_phdr[at].p_type == PT_DYNAMIC)
            return (const void *)(info->dlpi_addr + info->dlpi_phdr[at].p_vaddr);
    return NULL;
}

static struct tables tables_of(const struct dl_phdr_info *info)
{
    struct tables tables = {.has_addends = true};
    for (const ElfW(Dyn) *entry = dynamic_section(info); entry != NULL && entry->d_tag != DT_NULL; entry++) {
        const void *there = (const void *)address_of(info, entry->d_un.d_ptr);
        switch (entry->d_tag) {
        case DT_SYMTAB: tables.symbols = there; break;
        case DT_STRTAB: tables.names = there; break;
        case DT_RELA: tables.relocations[0].start = there; break;
        case DT_RELASZ: tables.relocations[0].bytes = entry->d_un.d_val; break;
        case DT_JMPREL: tables.relocations[1].start = there; break;
        case DT_PLTRELSZ: tables.relocations[1].bytes = entry->d_un.d_val; break;
        case DT_PLTREL: tables.has_addends = entry->d_un.d_val == DT_RELA; break;
        default: break;
        }
    }
    return tables;
}

static size_t symbol_of(const ElfW(Rela) *relocation)
{
    return (size_t)(sizeof(void *) == 8 ? (uint64_t)relocation->r_info >> 32 : relocation->r_info >> 8);
}

/* In most builds slots are read-only once the linker is done; then they are so again afterwards. */
static bool write_slot(const struct dl_phdr_info *info, void **slot, void *value)
{
    uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE), page = (uintptr_t)slot & ~(page_bytes - 1);
    bool is_protected = false;
    for (int at = 0; at < info->dlpi_phnum; at++) {
        uintptr_t start = info->dlpi_addr + info->dlpi_phdr[at].p_vaddr, end = start + info->dlpi_phdr[at].p_memsz;
        if (info->dlpi_phdr[at].p_type == PT_GNU_RELRO)
            is_protected = page + page_bytes > start && page + page_bytes <= end;
    }
    if (is_protected && mprotect((void *)page, page_bytes, PROT_READ | PROT_WRITE) != 0)
        return false;
    *slot = value;
    if (is_protected)
        mprotect((void *)page, page_bytes, PROT_READ);
    return true;
}

static int replace_import(struct dl_phdr_info *info, size_t size, void *wanted)
{
    (void)size;
    struct import *import = wanted;
    if (!is_libfuse(info))
        return 0;
    const struct tables tables = tables_of(info);
    if (tables.symbols == NULL || tables.names == NULL || !tables.has_addends)
        return 1;
    for (int table = 0; table < 2; table++) {
        const ElfW(Rela) *relocation = tables.relocations[table].start;
        size_t count = relocation == NULL ? 0 : tables.relocations[table].bytes / sizeof *relocation;
        for (; count > 0; count--, relocation++) {
            size_t symbol = symbol_of(relocation);
            if (symbol == 0 || strcmp(tables.names + tables.symbols[symbol].st_name, import->name) != 0)
                continue;
            if (write_slot(info, (void **)(info->dlpi_addr + relocation->r_offset), import->replacement))
                import->found = true;
        }
    }
    return 1;
}

bool libfuse_replace_import(const char *name, void *replacement)
{
    struct import import = {name, replacement, false};
    dl_iterate_phdr(replace_import, &import);
    return import.found;
}
