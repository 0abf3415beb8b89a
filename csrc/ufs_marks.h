/* The marks that a lookup reads, by the rules of unionfs/markers.py. */
#ifndef UFS_MARKS_H
#define UFS_MARKS_H

#include "ufs_table.h"

#define UFS_AUFS_PREFIX ".wh."
#define UFS_AUFS_OPAQUE ".wh..wh..opq"
#define UFS_FUSE_OVERLAYFS "user.fuseoverlayfs."
#define UFS_ESCAPE "overlay."

enum { UFS_ORIGIN_MAX = 255, UFS_REDIRECT_MAX = 256 };

#define UFS_MARK_OPAQUE "opaque"
#define UFS_MARK_REDIRECT "redirect"
#define UFS_MARK_IMPURE "impure"
#define UFS_MARK_ORIGIN "origin"
#define UFS_MARK_WHITEOUT "whiteout"
#define UFS_MARK_METACOPY "metacopy"
#define UFS_MARK_PROTATTR "protattr"

/* The name of the attribute that a mark is kept in. */
enum { UFS_MARK_NAME_SIZE = sizeof ((struct ufs_table *)0)->prefix + 16 };
const char *ufs_mark_name(const struct ufs_table *table, const char *mark,
                          char name[UFS_MARK_NAME_SIZE]);

/* The length of a mark's value, or -1 with errno. */
ssize_t ufs_mark(const struct ufs_table *table, int fd, const char *path, const char *mark,
                 void *value, size_t size);
bool ufs_has_mark(const struct ufs_table *table, int fd, const char *path, const char *mark);

/* The value of a directory's opaque mark, 'y' or 'x', or 0. */
char ufs_opaque(const struct ufs_table *table, int fd, const char *path);

/* Set a mark, as most are, to 'y'; or to a text: 0, or -1 with errno. */
int ufs_set_mark(const struct ufs_table *table, int fd, const char *path, const char *mark);
int ufs_set_text(const struct ufs_table *table, int fd, const char *path, const char *mark,
                 const char *text);

/* Whether an attribute is a mark, ours or fuse-overlayfs'; and whether such a one is escaped: of a
 * union that is a layer of this one. */
bool ufs_is_mark(const struct ufs_table *table, const char *name);
bool ufs_is_escaped(const struct ufs_table *table, const char *name);

/* The mark that names the lower file at a path as a copy's origin, empty where it has no handle:
 * its length, or -1 with errno. */
ssize_t ufs_make_origin(const struct ufs_table *table, int fd, const char *path, dev_t device,
                        unsigned char mark[UFS_ORIGIN_MAX]);

/* The lower file that an origin mark names: 1; 0 where none can be told; or -1 with errno. */
int ufs_origin(const struct ufs_table *table, const void *mark, size_t size, struct stat *status);

#endif
