/* Plays a recorded history through fusefs/kernel/native/names.c: see tests/fusefs/kernel/test_names.py.
 *
 * Arguments: how many inodes and names there may be. Input: see records.h; output: one line each.
 *   A attributes: inode (uint64), until (int64), kinds of extended attributes (int64), the attributes
 *   N name: directory (uint64), inode (uint64), until (int64), the name
 *   D drop: inode (uint64)
 *   X drop one name: directory (uint64), the name
 *   V drop all names
 *   R a request, read from a buffer of just its length, at a time (int64 before it): the answer's bytes
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "records.h"

static uint64_t number_at(const unsigned char *bytes, size_t at)
{
    uint64_t number;
    memcpy(&number, bytes + at * sizeof number, sizeof number);
    return number;
}

static void request(struct names *names, const unsigned char *bytes, size_t length)
{
    unsigned char answer[NAMES_ANSWER_BYTES];
    unsigned char *exact = malloc(length - 8 ? length - 8 : 1); /* of just its length, so that reading beyond it is found */
    if (exact == NULL)
        exit(2);
    memcpy(exact, bytes + 8, length - 8);
    const size_t answered = names_answer(names, exact, length - 8, (int64_t)number_at(bytes, 0), answer);
    free(exact);
    printf("answer ");
    for (size_t at = 0; at < answered; at++)
        printf("%02x", answer[at]);
    printf("\n");
}

static void command(void *subject, char letter, unsigned char *bytes, size_t length)
{
    struct names *names = subject;
    if (letter == 'R' && length >= 8) {
        request(names, bytes, length);
        return;
    }
    if (letter == 'A' && length == 24 + NAMES_ATTRIBUTES_BYTES)
        names_put_attributes(names, number_at(bytes, 0), bytes + 24, (int)(int64_t)number_at(bytes, 2), (int64_t)number_at(bytes, 1));
    else if (letter == 'N' && length >= 24)
        names_put_name(names, number_at(bytes, 0), bytes + 24, length - 24, number_at(bytes, 1), (int64_t)number_at(bytes, 2));
    else if (letter == 'D' && length == 8)
        names_drop(names, number_at(bytes, 0));
    else if (letter == 'X' && length >= 8)
        names_drop_name(names, number_at(bytes, 0), bytes + 8, length - 8);
    else if (letter == 'V')
        names_drop_names(names);
    puts("ok");
}

int main(int count, char **arguments)
{
    struct names names;
    if (count != 3 || !names_init(&names, strtoul(arguments[1], NULL, 10), strtoul(arguments[2], NULL, 10)))
        return 2;
    if (!play_records(command, &names))
        return 2;
    printf("answered %" PRIu64 "\n", names.answered);
    names_destroy(&names);
    return 0;
}
