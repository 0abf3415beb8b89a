/* Directories: names by the order of their hashes, which are their offsets. So a name that stays
 * is neither lost nor listed twice, whatever else changes meanwhile, and nothing has to be kept
 * while a directory is open. */
#ifndef UFS_DIRECTORIES_H
#define UFS_DIRECTORIES_H

#include "ufs_turn.h"

int ufs_on_readdir(struct ufs_turn *turn);
int ufs_on_readdirplus(struct ufs_turn *turn);
int ufs_on_fsyncdir(struct ufs_turn *turn);

#endif
