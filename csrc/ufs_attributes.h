/* What is known of a file beside its data: status, times, extended attributes, flags. */
#ifndef UFS_ATTRIBUTES_H
#define UFS_ATTRIBUTES_H

#include "ufs_turn.h"

/* linux/fuse.h since Linux 6.6 */
enum { UFS_FUSE_STATX = 52 };
struct ufs_statx_in {
    uint32_t getattr_flags, reserved;
    uint64_t handle;
    uint32_t flags, mask;
};

int ufs_on_getattr(struct ufs_turn *turn);
int ufs_on_statx(struct ufs_turn *turn);
int ufs_on_readlink(struct ufs_turn *turn);
int ufs_on_setattr(struct ufs_turn *turn);
int ufs_on_getxattr(struct ufs_turn *turn);
int ufs_on_listxattr(struct ufs_turn *turn);
int ufs_on_ioctl(struct ufs_turn *turn);
int ufs_on_statfs(struct ufs_turn *turn);

#endif
