/* Owners as the mount shows them, and as they are on disk; as fuse_mount/owners.py has it. */
#ifndef UFS_OWNERS_H
#define UFS_OWNERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ufs_range {
    uint32_t disk, inside, count;
};

/* The users, or the groups. No ranges: all are what they are. */
struct ufs_ids {
    struct ufs_range *ranges;
    size_t count;
    bool squashed; /* all are shown as one */
    uint32_t one;
};

uint32_t ufs_shown(const struct ufs_ids *ids, uint32_t on_disk);
uint32_t ufs_on_disk(const struct ufs_ids *ids, uint32_t shown);

#endif
