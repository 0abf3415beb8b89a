/* A plain file or directory of a lower layer becomes one of upper, by the rules of
 * unionfs/copyup.py. */
#ifndef UFS_COPYUP_H
#define UFS_COPYUP_H

#include "ufs_table.h"

enum { UFS_DRAFT_SIZE = 24, UFS_COPIED_MAX = 256 << 10 };

/* What is copied, and its copy in work. */
struct ufs_copy {
    int layer; /* the descriptor of its root */
    char *path, buffer[UFS_PATH_SIZE];
    struct stat status;
    char draft[UFS_DRAFT_SIZE];
};

/* A name in work that nothing has yet. The caller holds the lock. */
void ufs_name_draft(struct ufs_table *table, char draft[UFS_DRAFT_SIZE]);

/* Whether a node is copied here: a directory, or a file with one name, no holes, and not more than
 * UFS_COPIED_MAX bytes. The caller holds the lock; fills copy. 1, 0 or -errno. */
int ufs_plan_copy(struct ufs_table *table, const struct ufs_node *node, struct ufs_copy *copy);

/* Copy it with the first size bytes of its data, a directory without what lies in it. Asks nothing
 * of the table that changes, so that the caller need not hold the lock. buffer: UFS_COPIED_MAX
 * bytes. 0 or -errno, then without a copy. */
int ufs_build_copy(const struct ufs_table *table, const struct ufs_copy *copy, uint64_t size,
                   char *buffer);

/* Show the copy in the lower file's place, to those too who have it open. The node's parent is in
 * upper; the caller holds the lock. 0 or -errno. */
int ufs_install_copy(struct ufs_table *table, struct ufs_node *node, const struct ufs_copy *copy);

/* Say that files in a directory of upper may come from below: 0 or -errno. */
int ufs_set_impure(const struct ufs_table *table, struct ufs_node *directory);

#endif
