/* A fuzzer of the reader of layers' indexes: `make fuzz-index MINUTES=60`.
 *
 * An input is an index of any content whose sizes agree, which is all that the checksum leaves to
 * chance, and a path. Nothing outside the index may be read, and what is found has the name asked. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ufs_index.h"

enum { HEAD = 64, COUNTS = 16, DIRECTORY = 24, ENTRY = 88, PATH = 16 };

static void check(int true_thing)
{
    if (!true_thing)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct ufs_indexed directory, entry;
    char path[PATH + 1] = "";
    struct ufs_index index;
    unsigned char *data;
    uint32_t counts[2];
    uint64_t strings;
    size_t tables;

    if (size < 2 + PATH)
        return 0;
    counts[0] = input[0] % 8;
    counts[1] = input[1] % 8;
    memcpy(path, input + 2, PATH);
    input += 2 + PATH;
    size -= 2 + PATH;
    tables = counts[0] * DIRECTORY + counts[1] * ENTRY;
    if (size < tables)
        return 0;
    strings = size - tables;
    index.size = HEAD + COUNTS + size;
    data = calloc(1, index.size); /* exactly, so that a byte more is a fault */
    check(data != NULL);
    memcpy(data + HEAD, counts, sizeof counts);
    memcpy(data + HEAD + sizeof counts, &strings, sizeof strings);
    memcpy(data + HEAD + COUNTS, input, size);
    if (strings)
        data[index.size - 1] = '\0';
    index.data = data;
    if (ufs_index_directory(&index, path, strlen(path), &directory)) {
        check(!strcmp(directory.name, strcmp(path, ".") ? path : ""));
        for (uint32_t at = 0; at < directory.count; at++) {
            ufs_index_entry(&index, directory.first + at, &entry);
            check(strlen(entry.name) < index.size);
        }
    }
    if (*path && ufs_index_find(&index, path, &entry)) {
        const char *slash = strrchr(path, '/');

        check(!strcmp(entry.name, slash ? slash + 1 : path));
        check(entry.status.st_mtim.tv_nsec >= 0 && entry.status.st_mtim.tv_nsec < 1000000000);
    }
    free(data);
    return 0;
}
