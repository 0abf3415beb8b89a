/* Names removed and moved. */
#ifndef UFS_MOVES_H
#define UFS_MOVES_H

#include "ufs_turn.h"

int ufs_on_unlink(struct ufs_turn *turn);
int ufs_on_rmdir(struct ufs_turn *turn);
int ufs_on_rename(struct ufs_turn *turn);
int ufs_on_rename2(struct ufs_turn *turn);

#endif
