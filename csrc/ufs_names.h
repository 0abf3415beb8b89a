/* Names looked up and forgotten, and the making of new ones. */
#ifndef UFS_NAMES_H
#define UFS_NAMES_H

#include "ufs_turn.h"

/* Whether C makes no such name: it means something in layers of other tools, or is too long. */
bool ufs_is_for_python(const char *name);

int ufs_on_lookup(struct ufs_turn *turn);
int ufs_on_forget(struct ufs_turn *turn);
int ufs_on_batch_forget(struct ufs_turn *turn);
int ufs_on_mknod(struct ufs_turn *turn);
int ufs_on_mkdir(struct ufs_turn *turn);
int ufs_on_symlink(struct ufs_turn *turn);
int ufs_on_create(struct ufs_turn *turn);
int ufs_on_tmpfile(struct ufs_turn *turn);
int ufs_on_link(struct ufs_turn *turn);

#endif
