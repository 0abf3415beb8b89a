/* Flags of files (chattr(1)) and owners without a number, by the rules of unionfs/fileattr.py. */
#ifndef UFS_FILEATTR_H
#define UFS_FILEATTR_H

#include "ufs_table.h"

enum { UFS_OVERFLOW_ID = 65534 }; /* DEFAULT_OVERFLOWUID, linux/highuid.h */

/* Whether the idmapped mount that a file lies on has no number for its owner or group. */
bool ufs_is_unmapped(int fd, const char *path, const struct stat *status);

/* Which of FS_IMMUTABLE_FL and FS_APPEND_FL a node has: read once, while it has a name. The caller
 * holds the lock. */
unsigned ufs_guards(const struct ufs_table *table, struct ufs_node *node);

/* Give the copy of a lower file the flags that the VFS heeds, where upper can. 0 or -errno. */
int ufs_copy_flags(const struct ufs_table *table, int source, int copy);

/* Whether a command of ioctl(2) is one of those four that tell or set flags; and whether it sets. */
bool ufs_is_fileattr(unsigned command);
bool ufs_sets_fileattr(unsigned command);

/* Answer such a one of a node's file, opened as fd, and of upper where it sets anything. in: its size
 * bytes; out: room for as many as the command's number says. The caller holds the lock. The length
 * of what was put there, or -errno. */
int ufs_fileattr(const struct ufs_table *table, struct ufs_node *node, int fd, unsigned command,
                 const void *in, size_t size, void *out);

#endif
