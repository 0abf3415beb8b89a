/* Lookup by the rules of unionfs/resolve.py, for what is plain: redirects, copies of metadata and
 * files of upper with several links are for Python to resolve. */
#ifndef UFS_FIND_H
#define UFS_FIND_H

#include "ufs_table.h"

enum { UFS_ABSENT = 0, UFS_FOUND = 1, UFS_ASK = 2 };

/* What Python does for us. ask: look the node at a name up, and make it known: its ID, 0, or -errno.
 * copy_up: make upper hold a directory: 0 or -errno. */
struct ufs_asked {
    int64_t (*ask)(void *context, uint64_t parent, const char *name);
    int (*copy_up)(void *context, uint64_t directory);
    void *context;
};

/* The node at a name, looked up if it is not known: UFS_FOUND, UFS_ABSENT or -errno. status: of its
 * file where the search has read it, as *filled tells. */
int ufs_find(struct ufs_table *table, const struct ufs_asked *asked, struct ufs_node *parent,
             const char *name, struct ufs_node **node, struct stat *status, bool *filled);

/* Whether the lower places of a directory show a name, were upper not to: 1, 0, or -1 with errno. */
int ufs_exists_below(struct ufs_table *table, struct ufs_node *parent, const char *name);

#endif
