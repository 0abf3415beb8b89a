#include "ufs_owners.h"

#include "ufs_fileattr.h"

uint32_t ufs_shown(const struct ufs_ids *ids, uint32_t on_disk)
{
    if (ids->squashed)
        return ids->one;
    for (const struct ufs_range *at = ids->ranges; at < ids->ranges + ids->count; at++)
        if (on_disk >= at->disk && on_disk - at->disk < at->count)
            return at->inside + (on_disk - at->disk);
    return ids->count ? UFS_OVERFLOW_ID : on_disk;
}

uint32_t ufs_on_disk(const struct ufs_ids *ids, uint32_t shown)
{
    for (const struct ufs_range *at = ids->ranges; at < ids->ranges + ids->count; at++)
        if (shown >= at->inside && shown - at->inside < at->count)
            return at->disk + (shown - at->inside);
    return ids->count ? UFS_OVERFLOW_ID : shown;
}
