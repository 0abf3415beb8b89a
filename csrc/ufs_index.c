#define _GNU_SOURCE
#include "ufs_index.h"

#include <endian.h>
#include <string.h>

struct header {
    unsigned char unread[64]; /* magic, version, checksum, identity */
    uint32_t directories, entries;
    uint64_t strings;
};

struct directory {
    uint32_t path, first, count, marks, redirect, reserved;
};

struct entry {
    uint64_t inode, rdev;
    int64_t size, blocks, atime, mtime, ctime;
    uint32_t mode, links, uid, gid, block_size, name, marks, reserved;
};

enum { NANOSECONDS = 1000000000 };

static const struct header *header_of(const struct ufs_index *index)
{
    return (const void *)index->data;
}

static const struct directory *directories_of(const struct ufs_index *index)
{
    return (const void *)(index->data + sizeof(struct header));
}

static const struct entry *entries_of(const struct ufs_index *index)
{
    return (const void *)(directories_of(index) + le32toh(header_of(index)->directories));
}

/* A string; "" where there is none. */
static const char *text(const struct ufs_index *index, uint32_t offset)
{
    uint64_t strings = le64toh(header_of(index)->strings);

    return le32toh(offset) < strings
               ? (const char *)index->data + index->size - strings + le32toh(offset)
               : "";
}

/* As strcmp(3), of a text and the first length bytes of another. */
static int compare(const char *one, const char *other, size_t length)
{
    int differs = strncmp(one, other, length);

    return differs ? differs : one[length] != 0;
}

bool ufs_index_directory(const struct ufs_index *index, const char *path, size_t length,
                         struct ufs_indexed *directory)
{
    const struct directory *directories = directories_of(index);
    uint32_t low = 0, high = le32toh(header_of(index)->directories), middle;
    uint32_t entries = le32toh(header_of(index)->entries);
    int differs;

    if (length == 1 && *path == '.')
        length = 0;
    while (low < high) {
        middle = low + (high - low) / 2;
        differs = compare(text(index, directories[middle].path), path, length);
        if (!differs) {
            directory->name = text(index, directories[middle].path);
            directory->first = le32toh(directories[middle].first);
            directory->count = le32toh(directories[middle].count);
            directory->marks = le32toh(directories[middle].marks);
            /* No sum tells of a mistake in what was written: nothing outside is read. */
            return directory->first <= entries && directory->count <= entries - directory->first;
        }
        if (differs < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static struct timespec time_of(int64_t stored)
{
    int64_t time = (int64_t)le64toh((uint64_t)stored), rest = time % NANOSECONDS;
    bool before = rest < 0; /* 1970: the division has rounded up */

    return (struct timespec){ .tv_sec = time / NANOSECONDS - before,
                              .tv_nsec = rest + before * (int64_t)NANOSECONDS };
}

void ufs_index_entry(const struct ufs_index *index, uint32_t number, struct ufs_indexed *entry)
{
    const struct entry *found = entries_of(index) + number;

    entry->name = text(index, found->name);
    entry->marks = le32toh(found->marks);
    entry->status = (struct stat){
        .st_ino = le64toh(found->inode),
        .st_rdev = le64toh(found->rdev),
        .st_size = (off_t)le64toh((uint64_t)found->size),
        .st_blocks = (blkcnt_t)le64toh((uint64_t)found->blocks),
        .st_atim = time_of(found->atime),
        .st_mtim = time_of(found->mtime),
        .st_ctim = time_of(found->ctime),
        .st_mode = le32toh(found->mode),
        .st_nlink = le32toh(found->links),
        .st_uid = le32toh(found->uid),
        .st_gid = le32toh(found->gid),
        .st_blksize = le32toh(found->block_size),
    };
}

bool ufs_index_find(const struct ufs_index *index, const char *path, struct ufs_indexed *entry)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const struct entry *entries = entries_of(index);
    struct ufs_indexed directory;
    uint32_t low, high, middle;
    int differs;

    if (!ufs_index_directory(index, path, slash ? (size_t)(slash - path) : 0, &directory))
        return false;
    low = directory.first;
    high = low + directory.count;
    while (low < high) {
        middle = low + (high - low) / 2;
        differs = strcmp(text(index, entries[middle].name), name);
        if (!differs) {
            ufs_index_entry(index, middle, entry);
            return true;
        }
        if (differs < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}
