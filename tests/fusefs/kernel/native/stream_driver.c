/* Plays a recorded stream through fusefs/kernel/native/stream.c: see tests/fusefs/kernel/test_stream.py.
 *
 * Input: see records.h; output: one line for each.
 *   R a request, read from a buffer of just its length: pass, take, or answer with its bytes
 *   W a reply: the message as it goes out
 *   P a reply in two parts, header and body, as libfuse sends it
 *   O will_open: kind, flags, backing id (uint32), handle (uint64)
 *   F watch_flush: inode (uint64), wanted (uint32)
 *   A answered: unique (uint64)
 *   I whose: unique (uint64); who waits for it
 *   B abandon: unique (uint64)
 *   D declined: the request
 *   L look_at_write: the beginning of the request
 *   K kills_set_id: inode (uint64)
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "records.h"
#include "stream.h"

static void print_bytes(const char *what, const unsigned char *bytes, size_t length)
{
    printf("%s ", what);
    for (size_t at = 0; at < length; at++)
        printf("%02x", bytes[at]);
    printf("\n");
}

static void request(struct stream *stream, const unsigned char *message, size_t length)
{
    switch (stream_request(stream, message, length)) {
    case STREAM_PASS:
        puts("pass");
        break;
    case STREAM_TAKE:
        puts("take");
        break;
    case STREAM_ANSWER:
        print_bytes("answer", stream->answer, sizeof stream->answer);
        break;
    }
}

static void reply(struct stream *stream, unsigned char *message, size_t length, size_t first)
{
    unsigned char patched[STREAM_PATCHED_BYTES];
    struct iovec parts[2] = {{message, first}, {message + first, length - first}};
    size_t changed = stream_reply(stream, parts, first < length ? 2 : 1, patched);
    if (changed == STREAM_DROPPED) {
        const struct stream_dropped *dropped = &stream->dropped;
        printf("dropped %s %" PRIu64 "\n", !dropped->is_open ? "nothing" : dropped->kind == STREAM_FILE ? "file" : "directory",
               dropped->is_open ? dropped->handle : 0);
        return;
    }
    print_bytes(changed ? "changed" : "same", changed ? patched : message, changed ? changed : length);
}

static void command(void *subject, char letter, unsigned char *bytes, size_t length)
{
    struct stream *stream = subject;
    struct { uint32_t kind, flags, backing_id, padding; uint64_t handle; } open;
    struct { uint64_t inode; uint32_t wanted, padding; } flush;
    uint64_t unique;
    if (letter == 'R') {
        request(stream, bytes, length);
    } else if (letter == 'W') {
        reply(stream, bytes, length, length);
    } else if (letter == 'P') {
        reply(stream, bytes, length, length < 16 ? length : 16);
    } else if (letter == 'O' && length == sizeof open) {
        memcpy(&open, bytes, sizeof open);
        puts(stream_will_open(stream, open.kind ? STREAM_DIRECTORY : STREAM_FILE, open.handle, open.flags, open.backing_id) ? "ok" : "no");
    } else if (letter == 'F' && length == sizeof flush) {
        memcpy(&flush, bytes, sizeof flush);
        puts(stream_watch(stream, flush.inode, flush.wanted != 0) ? "ok" : "no");
    } else if (letter == 'A' && length == sizeof unique) {
        memcpy(&unique, bytes, sizeof unique);
        puts(stream_answered(stream, unique) ? "ok" : "drop");
    } else if (letter == 'I' && length == sizeof unique) {
        struct stream_waiter waiter;
        memcpy(&unique, bytes, sizeof unique);
        if (stream_whose(stream, unique, &waiter))
            printf("%" PRIu32 " by %" PRIu32 " of %" PRIu64 "\n", waiter.opcode, waiter.pid, waiter.inode);
        else
            puts("nobody");
    } else if (letter == 'B' && length == sizeof unique) {
        memcpy(&unique, bytes, sizeof unique);
        puts(stream_abandon(stream, unique) ? "ok" : "no");
    } else if (letter == 'L') {
        stream_look_at_write(stream, bytes, length);
        puts("ok");
    } else if (letter == 'K' && length == sizeof unique) {
        memcpy(&unique, bytes, sizeof unique);
        puts(stream_kills_set_id(stream, unique) ? "yes" : "no");
    } else if (letter == 'D' && length >= 40) {
        stream_declined(stream, bytes);
        puts("ok");
    } else {
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct stream stream;
    if (argc != 3)
        return 2;
    stream_init(&stream, strtoull(argv[1], NULL, 0), strtoull(argv[2], NULL, 0));
    if (!play_records(command, &stream))
        return 2;
    printf("asked %zu opens %zu under way %zu watched %zu granted %#" PRIx64 " passed %" PRIu64 "\n", stream.asked.count,
           stream.opens.count, stream.under_way.count, stream.watched.count, stream.granted, stream.passed);
    stream_destroy(&stream);
    return 0;
}
