/* The input of the drivers in this folder: records of a letter, a length and so many bytes. */
#ifndef GODWIT_RECORDS_H
#define GODWIT_RECORDS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Calls *command* with *subject* for each record of stdin; false if it ends within one. The bytes lie in a buffer of just their
 * length, so that reading beyond it is found. */
static bool play_records(void (*command)(void *subject, char letter, unsigned char *bytes, size_t length), void *subject)
{
    int letter;
    uint32_t length;
    while ((letter = getchar()) != EOF) {
        if (fread(&length, sizeof length, 1, stdin) != 1)
            return false;
        unsigned char *bytes = malloc(length ? length : 1);
        if (bytes == NULL || (length && fread(bytes, length, 1, stdin) != 1)) {
            free(bytes);
            return false;
        }
        command(subject, (char)letter, bytes, length);
        free(bytes);
    }
    return true;
}

#endif
