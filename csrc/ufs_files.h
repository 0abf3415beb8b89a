/* Open files and their data. */
#ifndef UFS_FILES_H
#define UFS_FILES_H

#include "ufs_turn.h"

/* The flags of open(2) with which a layer's file is opened, from those of the kernel. */
int ufs_layer_flags(const struct ufs_session *session, uint32_t flags);

/* Note an open file, as ufs_opened, and set up passthrough to it where that pays. The caller holds
 * the table's lock. 0, or -1 with errno. */
int ufs_keep_open(struct ufs_session *session, struct ufs_node *node, int fd, int flags,
                  bool lower);

void ufs_fill_open(const struct ufs_node *node, int fd, struct fuse_open_out *out);

/* The reply that gives the kernel an open file, closed where that fails: 0 or -errno. */
int ufs_tell_open(struct ufs_turn *turn, struct ufs_node *node, int fd, int flags, bool lower);

/* What the kernel leaves to us where it drops set-id bits by itself otherwise. */
void ufs_drop_set_id(struct ufs_turn *turn, int fd);

int ufs_on_open(struct ufs_turn *turn);
int ufs_on_release(struct ufs_turn *turn);
int ufs_on_read(struct ufs_turn *turn);
int ufs_on_write(struct ufs_turn *turn);
int ufs_on_fsync(struct ufs_turn *turn);
int ufs_on_lseek(struct ufs_turn *turn);
int ufs_on_fallocate(struct ufs_turn *turn);
int ufs_on_copy_file_range(struct ufs_turn *turn);

#endif
