#include "names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "messages.h"

/* From include/uapi/linux/fuse.h of Linux 6.9, as those in messages.h. */

enum { OP_LOOKUP = 1, OP_GETATTR = 3, OP_GETXATTR = 22, OP_LISTXATTR = 23 };

struct entry_out {
    uint64_t inode, generation, entry_s, attributes_s;
    uint32_t entry_ns, attributes_ns;
    unsigned char attributes[NAMES_ATTRIBUTES_BYTES];
};

struct attributes_out {
    uint64_t attributes_s;
    uint32_t attributes_ns, padding;
    unsigned char attributes[NAMES_ATTRIBUTES_BYTES];
};

struct getxattr_in {
    uint32_t size, padding; /* room for the value; 0: its length is asked for. The name follows */
};

struct getxattr_out {
    uint32_t size, padding;
};

_Static_assert(sizeof(struct out_header) + sizeof(struct entry_out) == NAMES_ANSWER_BYTES, "FUSE_LOOKUP");
_Static_assert(sizeof(struct attributes_out) == 104, "FUSE_GETATTR");

enum { NS = 1000000000 };

struct names_node {
    uint64_t ino;
    int64_t until_ns;    /* of the attributes; 0: they are not known */
    int32_t first_entry; /* of the names in it, or -1 */
    int32_t next;        /* in its bucket, or among the free ones */
    int xattrs;          /* of `names_xattrs` */
    bool is_taken;
    unsigned char attributes[NAMES_ATTRIBUTES_BYTES];
};

struct names_entry {
    uint64_t ino;     /* 0: there is none of that name */
    int64_t until_ns;
    char *name;       /* of this entry alone; NULL: this place is free */
    size_t length;
    uint64_t hash;    /* of name and directory */
    int32_t parent;   /* the directory's place */
    int32_t before, after; /* others of the same directory, or -1 */
    int32_t next;     /* in its bucket, or among the free ones */
};

static uint64_t mixed(uint64_t value)
{
    value = (value ^ (value >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94D049BB133111EB);
    return value ^ (value >> 31);
}

/* FNV-1a, begun with the directory. */
static uint64_t hash_of(uint64_t parent, const unsigned char *name, size_t length)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325) ^ mixed(parent);
    for (size_t at = 0; at < length; at++)
        hash = (hash ^ name[at]) * UINT64_C(0x100000001B3);
    return mixed(hash);
}

/* ----------------------------------------------------------------------------------------------------------- memory */

static void empty(struct names *names)
{
    for (size_t at = 0; at < names->entries_taken; at++)
        free(names->entries[at].name);
    for (size_t at = 0; names->node_buckets && at < names->nodes_max; at++)
        names->node_buckets[at] = -1;
    for (size_t at = 0; names->entry_buckets && at < names->entries_max; at++)
        names->entry_buckets[at] = -1;
    names->free_node = names->free_entry = -1;
    names->nodes_taken = names->entries_taken = names->next_node = names->next_entry = 0;
}

bool names_init(struct names *names, size_t nodes_max, size_t entries_max)
{
    *names = (struct names){.nodes_max = nodes_max, .entries_max = entries_max};
    /* Places are touched as they are taken: what nobody needs costs no memory. */
    names->nodes = calloc(nodes_max, sizeof *names->nodes);
    names->entries = calloc(entries_max, sizeof *names->entries);
    names->node_buckets = malloc(nodes_max * sizeof *names->node_buckets);
    names->entry_buckets = malloc(entries_max * sizeof *names->entry_buckets);
    if (!names->nodes || !names->entries || !names->node_buckets || !names->entry_buckets) {
        names_destroy(names);
        return false;
    }
    empty(names);
    return true;
}

void names_destroy(struct names *names)
{
    empty(names);
    free(names->nodes);
    free(names->entries);
    free(names->node_buckets);
    free(names->entry_buckets);
    *names = (struct names){.free_node = -1, .free_entry = -1};
}

/* ----------------------------------------------------------------------------------------------------------- places */

static int32_t *node_bucket(const struct names *names, uint64_t ino)
{
    return &names->node_buckets[mixed(ino) % names->nodes_max];
}

static int32_t find_node(const struct names *names, uint64_t ino)
{
    if (names->nodes_max == 0)
        return -1;
    int32_t at = *node_bucket(names, ino);
    while (at >= 0 && names->nodes[at].ino != ino)
        at = names->nodes[at].next;
    return at;
}

static int32_t find_entry(const struct names *names, uint64_t parent, const void *name, size_t length)
{
    if (names->entries_max == 0)
        return -1;
    const uint64_t hash = hash_of(parent, name, length);
    int32_t at = names->entry_buckets[hash % names->entries_max];
    for (; at >= 0; at = names->entries[at].next) {
        const struct names_entry *entry = &names->entries[at];
        if (entry->hash == hash && entry->length == length && names->nodes[entry->parent].ino == parent &&
            memcmp(entry->name, name, length) == 0)
            return at;
    }
    return -1;
}

static void remove_entry(struct names *names, int32_t at)
{
    struct names_entry *entry = &names->entries[at];
    if (entry->before >= 0)
        names->entries[entry->before].after = entry->after;
    else
        names->nodes[entry->parent].first_entry = entry->after;
    if (entry->after >= 0)
        names->entries[entry->after].before = entry->before;
    int32_t *link = &names->entry_buckets[entry->hash % names->entries_max];
    while (*link != at)
        link = &names->entries[*link].next;
    *link = entry->next;
    free(entry->name);
    *entry = (struct names_entry){.next = names->free_entry};
    names->free_entry = at;
}

static void remove_node(struct names *names, int32_t at)
{
    struct names_node *node = &names->nodes[at];
    while (node->first_entry >= 0)
        remove_entry(names, node->first_entry);
    int32_t *link = node_bucket(names, node->ino);
    while (*link != at)
        link = &names->nodes[*link].next;
    *link = node->next;
    *node = (struct names_node){.next = names->free_node};
    names->free_node = at;
}

/* The place of an inode, taken now if it had none. */
static int32_t node_at(struct names *names, uint64_t ino)
{
    int32_t at = find_node(names, ino);
    if (at >= 0)
        return at;
    if (names->nodes_max == 0)
        return -1;
    if (names->free_node < 0 && names->nodes_taken == names->nodes_max) {
        /* All places are taken, so this one is. */
        remove_node(names, (int32_t)names->next_node);
        names->next_node = (names->next_node + 1) % names->nodes_max;
    }
    at = names->free_node >= 0 ? names->free_node : (int32_t)names->nodes_taken++;
    if (at == names->free_node)
        names->free_node = names->nodes[at].next;
    int32_t *bucket = node_bucket(names, ino);
    names->nodes[at] = (struct names_node){.ino = ino, .first_entry = -1, .next = *bucket, .is_taken = true};
    *bucket = at;
    return at;
}

static int32_t take_entry(struct names *names)
{
    if (names->free_entry < 0 && names->entries_taken == names->entries_max) {
        remove_entry(names, (int32_t)names->next_entry);
        names->next_entry = (names->next_entry + 1) % names->entries_max;
    }
    const int32_t at = names->free_entry >= 0 ? names->free_entry : (int32_t)names->entries_taken++;
    if (at == names->free_entry)
        names->free_entry = names->entries[at].next;
    return at;
}

/* ----------------------------------------------------------------------------------------------------------- Python's */

void names_put_attributes(struct names *names, uint64_t ino, const unsigned char attributes[NAMES_ATTRIBUTES_BYTES], int xattrs,
                          int64_t until_ns)
{
    const int32_t at = node_at(names, ino);
    if (at < 0)
        return;
    memcpy(names->nodes[at].attributes, attributes, NAMES_ATTRIBUTES_BYTES);
    names->nodes[at].xattrs = xattrs;
    names->nodes[at].until_ns = until_ns;
}

void names_put_name(struct names *names, uint64_t parent, const void *name, size_t length, uint64_t ino, int64_t until_ns)
{
    if (length == 0 || length > NAMES_NAME_MAX || names->entries_max == 0 || names->nodes_max == 0)
        return;
    int32_t at = find_entry(names, parent, name, length);
    if (at < 0) {
        char *copy = malloc(length);
        if (copy == NULL)
            return; /* then Python answers */
        memcpy(copy, name, length);
        /* In this order: the entry that gives way may have been the directory's only one, but the directory stays. */
        at = take_entry(names);
        const int32_t directory = node_at(names, parent);
        const uint64_t hash = hash_of(parent, name, length);
        int32_t *bucket = &names->entry_buckets[hash % names->entries_max];
        struct names_node *of = &names->nodes[directory];
        names->entries[at] = (struct names_entry){
            .name = copy, .length = length, .hash = hash, .parent = directory, .before = -1, .after = of->first_entry, .next = *bucket};
        *bucket = at;
        if (of->first_entry >= 0)
            names->entries[of->first_entry].before = at;
        of->first_entry = at;
    }
    names->entries[at].ino = ino;
    names->entries[at].until_ns = until_ns;
}

void names_drop(struct names *names, uint64_t ino)
{
    const int32_t at = find_node(names, ino);
    if (at >= 0)
        remove_node(names, at);
}

void names_drop_name(struct names *names, uint64_t parent, const void *name, size_t length)
{
    const int32_t at = find_entry(names, parent, name, length);
    if (at >= 0)
        remove_entry(names, at);
}

void names_drop_names(struct names *names)
{
    for (size_t at = 0; at < names->nodes_taken; at++)
        while (names->nodes[at].is_taken && names->nodes[at].first_entry >= 0)
            remove_entry(names, names->nodes[at].first_entry);
}

/* --------------------------------------------------------------------------------------------------------- messages */

static size_t set_answer(unsigned char answer[NAMES_ANSWER_BYTES], uint64_t unique, const void *body, size_t length)
{
    const struct out_header header = {(uint32_t)(sizeof header + length), 0, unique};
    memcpy(answer, &header, sizeof header);
    if (length > 0)
        memcpy(answer + sizeof header, body, length);
    return sizeof header + length;
}

static size_t set_error(unsigned char answer[NAMES_ANSWER_BYTES], uint64_t unique, int error)
{
    const struct out_header header = {sizeof header, -error, unique};
    memcpy(answer, &header, sizeof header);
    return sizeof header;
}

/* The place of an inode whose attributes are good at a time, or -1. */
static int32_t find_good(const struct names *names, uint64_t ino, int64_t now_ns)
{
    const int32_t at = find_node(names, ino);
    return at >= 0 && names->nodes[at].until_ns > now_ns ? at : -1;
}

static size_t answer_lookup(struct names *names, const struct in_header *header, const unsigned char *name, size_t length, int64_t now_ns,
                            unsigned char answer[NAMES_ANSWER_BYTES])
{
    /* The kernel ends it with a zero, and has none within it. */
    if (length < 2 || name[length - 1] != 0)
        return 0;
    const int32_t at = find_entry(names, header->inode, name, length - 1);
    if (at < 0 || names->entries[at].until_ns <= now_ns)
        return 0;
    const struct names_entry *entry = &names->entries[at];
    const int64_t entry_ns = entry->until_ns - now_ns;
    struct entry_out body = {.inode = entry->ino, .entry_s = (uint64_t)(entry_ns / NS), .entry_ns = (uint32_t)(entry_ns % NS)};
    if (entry->ino != 0) {
        const int32_t node = find_good(names, entry->ino, now_ns);
        if (node < 0)
            return 0;
        const int64_t attributes_ns = names->nodes[node].until_ns - now_ns;
        body.attributes_s = (uint64_t)(attributes_ns / NS);
        body.attributes_ns = (uint32_t)(attributes_ns % NS);
        memcpy(body.attributes, names->nodes[node].attributes, sizeof body.attributes);
    }
    return set_answer(answer, header->unique, &body, sizeof body);
}

static size_t answer_getattr(struct names *names, const struct in_header *header, int64_t now_ns, unsigned char answer[NAMES_ANSWER_BYTES])
{
    const int32_t node = find_good(names, header->inode, now_ns);
    if (node < 0)
        return 0;
    const int64_t attributes_ns = names->nodes[node].until_ns - now_ns;
    struct attributes_out body = {(uint64_t)(attributes_ns / NS), (uint32_t)(attributes_ns % NS), 0, {0}};
    memcpy(body.attributes, names->nodes[node].attributes, sizeof body.attributes);
    return set_answer(answer, header->unique, &body, sizeof body);
}

/* With something behind it. */
static bool begins_with(const unsigned char *name, const char *beginning)
{
    const size_t length = strlen(beginning);
    return strncmp((const char *)name, beginning, length) == 0 && name[length] != 0;
}

/* The kind of an attribute; NAMES_UNKNOWN: one that nobody can have set, whose error is Python's. */
static int kind_of(const unsigned char *name)
{
    if (strcmp((const char *)name, "security.capability") == 0)
        return NAMES_CAPABILITY;
    if (strcmp((const char *)name, "system.posix_acl_access") == 0)
        return NAMES_ACCESS_ACL;
    if (strcmp((const char *)name, "system.posix_acl_default") == 0)
        return NAMES_DEFAULT_ACL;
    return begins_with(name, "user.") || begins_with(name, "trusted.") || begins_with(name, "security.") ? NAMES_OTHER : NAMES_UNKNOWN;
}

static size_t answer_getxattr(struct names *names, const struct in_header *header, const unsigned char *body, size_t length, int64_t now_ns,
                              unsigned char answer[NAMES_ANSWER_BYTES])
{
    const int32_t node = find_good(names, header->inode, now_ns);
    if (node < 0 || names->nodes[node].xattrs == NAMES_UNKNOWN || length <= sizeof(struct getxattr_in) || body[length - 1] != 0)
        return 0;
    const int kind = kind_of(body + sizeof(struct getxattr_in));
    if (kind == NAMES_UNKNOWN || names->nodes[node].xattrs & kind)
        return 0;
    return set_error(answer, header->unique, ENODATA);
}

static size_t answer_listxattr(struct names *names, const struct in_header *header, const unsigned char *body, size_t length, int64_t now_ns,
                               unsigned char answer[NAMES_ANSWER_BYTES])
{
    const int32_t node = find_good(names, header->inode, now_ns);
    struct getxattr_in asked;
    if (node < 0 || names->nodes[node].xattrs != 0 || length < sizeof asked)
        return 0;
    memcpy(&asked, body, sizeof asked);
    const struct getxattr_out none = {0, 0};
    return set_answer(answer, header->unique, &none, asked.size == 0 ? sizeof none : 0);
}

size_t names_answer(struct names *names, const void *message, size_t length, int64_t now_ns, unsigned char answer[NAMES_ANSWER_BYTES])
{
    struct in_header header;
    if (length < sizeof header)
        return 0;
    memcpy(&header, message, sizeof header);
    /* With extensions, what follows the header is not the name alone. */
    if (header.length != length || header.extensions)
        return 0;
    const unsigned char *body = (const unsigned char *)message + sizeof header;
    size_t answered = 0;
    if (header.opcode == OP_LOOKUP)
        answered = answer_lookup(names, &header, body, length - sizeof header, now_ns, answer);
    else if (header.opcode == OP_GETATTR)
        answered = answer_getattr(names, &header, now_ns, answer);
    else if (header.opcode == OP_GETXATTR)
        answered = answer_getxattr(names, &header, body, length - sizeof header, now_ns, answer);
    else if (header.opcode == OP_LISTXATTR)
        answered = answer_listxattr(names, &header, body, length - sizeof header, now_ns, answer);
    names->answered += answered != 0;
    return answered;
}
