/* Plays a recorded history through fusefs/kernel/native/delegations.c: see tests/fusefs/kernel/test_delegations.py.
 *
 * Arguments: how many inodes and opens there may be. Input: see records.h; output: one line each.
 *   D delegate: a struct delegation; its descriptor says the size that the object has now
 *   S suspend: inode (uint64)
 *   T take back: inode (uint64); the handles, the newest first
 *   I inode of: handle (uint64)
 *   U used: the inodes, in order
 *   R a request, read from a buffer of just its length, at a time (int64 before it): the answer's bytes
 *   X likewise, but the kernel does not take the answer
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "delegations.h"
#include "records.h"

static bool check(int descriptor, int64_t size, int64_t ctime_ns)
{
    return descriptor == size && ctime_ns >= 0;
}

static int compare(const void *one, const void *other)
{
    const uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

static void used(struct delegations *delegations)
{
    uint64_t *inodes = calloc(delegations->inodes_max + 1, sizeof *inodes), inode;
    size_t count = 0;
    for (size_t at = 0; (inode = delegations_used(delegations, &at)) != 0;)
        inodes[count++] = inode;
    qsort(inodes, count, sizeof *inodes, compare);
    printf("used");
    for (size_t at = 0; at < count; at++)
        printf(" %" PRIu64, inodes[at]);
    printf("\n");
    free(inodes);
}

static void take_back(struct delegations *delegations, uint64_t ino)
{
    uint64_t number;
    printf("handles");
    while (delegations_take_open(delegations, ino, &number))
        printf(" %" PRIu64, number);
    puts(delegations_end(delegations, ino) ? " ended" : " none");
}

static void request(struct delegations *delegations, const unsigned char *bytes, size_t length, bool taken)
{
    unsigned char answer[DELEGATIONS_ANSWER_BYTES];
    int64_t now_ns;
    memcpy(&now_ns, bytes, sizeof now_ns);
    unsigned char *message = malloc(length - sizeof now_ns + 1); /* of just its length, so that reading beyond it is found */
    unsigned char *exact = realloc(message, length - sizeof now_ns ? length - sizeof now_ns : 1);
    memcpy(exact, bytes + sizeof now_ns, length - sizeof now_ns);
    const size_t answered = delegations_answer(delegations, exact, length - sizeof now_ns, now_ns, check, answer);
    free(exact);
    printf("answer ");
    for (size_t at = 0; at < answered; at++)
        printf("%02x", answer[at]);
    printf("\n");
    if (!taken)
        delegations_undo(delegations, answer, answered);
}

static void command(void *subject, char letter, unsigned char *bytes, size_t length)
{
    struct delegations *delegations = subject;
    struct delegation delegation;
    uint64_t number = 0;
    if (letter == 'D' && length == sizeof delegation) {
        memcpy(&delegation, bytes, sizeof delegation);
        puts(delegations_put(delegations, &delegation) ? "ok" : "no");
        return;
    }
    if ((letter == 'R' || letter == 'X') && length >= sizeof(int64_t)) {
        request(delegations, bytes, length, letter == 'R');
        return;
    }
    if (length == sizeof number)
        memcpy(&number, bytes, sizeof number);
    if (letter == 'S') {
        delegations_suspend(delegations, number);
        puts("ok");
    } else if (letter == 'T') {
        take_back(delegations, number);
    } else if (letter == 'I') {
        printf("inode %" PRIu64 "\n", delegations_inode_of(delegations, number));
    } else {
        used(delegations);
    }
}

int main(int count, char **arguments)
{
    struct delegations delegations;
    if (count != 3 || !delegations_init(&delegations, strtoul(arguments[1], NULL, 10), strtoul(arguments[2], NULL, 10)))
        return 2;
    if (!play_records(command, &delegations))
        return 2;
    printf("answered %" PRIu64 "\n", delegations.answered);
    delegations_destroy(&delegations);
    return 0;
}
