/* The names in directories of layers, merged by the rules of unionfs/merge.py, sorted by hash. */
#ifndef UFS_LISTING_H
#define UFS_LISTING_H

#include "ufs_table.h"

/* One name. type: DT_WHT hides the name in what lies below. */
struct ufs_entry {
    uint64_t hash;
    ino_t inode;
    uint32_t name;  /* where it begins in names */
    int32_t more;   /* of a directory: the next place that holds it, in links, or -1 */
    uint16_t place; /* which place of the directory answers */
    uint8_t type;
};

struct ufs_link {
    int32_t next;
    uint16_t place;
};

struct ufs_listing {
    struct ufs_entry *entries;
    size_t count;
    char *names;
    struct ufs_link *links;
};

/* What the lower places of a directory hold, whiteouts left out; what upper holds, with them.
 * NULL with errno. */
struct ufs_listing *ufs_list_lower(const struct ufs_table *table, const struct ufs_node *node);
struct ufs_listing *ufs_list_upper(const struct ufs_table *table, const struct ufs_node *node);
void ufs_free_listing(struct ufs_listing *listing);

/* The entry of a name, or NULL. */
const struct ufs_entry *ufs_listed(const struct ufs_listing *listing, const char *name,
                                   uint64_t hash);

#endif
