/* Reads the index of a layer, whose form unionfs/layerindex.py describes and checks. */
#ifndef UFS_INDEX_H
#define UFS_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/* Of a directory, and of an entry. */
enum { UFS_INDEX_OPAQUE = 1, UFS_INDEX_REDIRECT = 2 };
enum { UFS_INDEX_METACOPY = 1, UFS_INDEX_WHITEOUT = 2 };

/* A whole index, not owned: its bytes stay where they are as long as it is used. */
struct ufs_index {
    const unsigned char *data;
    size_t size;
};

struct ufs_indexed {
    const char *name;
    uint32_t first, count; /* of a directory: its entries */
    uint32_t marks;
    struct stat status; /* of an entry; its st_dev is the caller's to fill */
};

/* Whether the index has a directory by that path, "." or "" for the root, and what it is. */
bool ufs_index_directory(const struct ufs_index *index, const char *path, size_t length,
                         struct ufs_indexed *directory);

/* The entry of a number. */
void ufs_index_entry(const struct ufs_index *index, uint32_t number, struct ufs_indexed *entry);

/* Whether the layer holds a path, which is not the root, and what is there. */
bool ufs_index_find(const struct ufs_index *index, const char *path, struct ufs_indexed *entry);

#endif
