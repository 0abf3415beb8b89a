#include "ufs_owners.h"

#include "ufs_fileattr.h"

uint32_t ufs_shown(const struct ufs_ids *ids, uint32_t on_disk)
{
    if (ids->squashed)
        return ids->one;
    for (size_t at = 0; at < ids->count; at++) {
        const struct ufs_range *range = &ids->ranges[at];

        if (on_disk >= range->disk && on_disk - range->disk < range->count)
            return range->inside + (on_disk - range->disk);
    }
    return ids->count ? UFS_OVERFLOW_ID : on_disk;
}

uint32_t ufs_on_disk(const struct ufs_ids *ids, uint32_t shown)
{
    for (size_t at = 0; at < ids->count; at++) {
        const struct ufs_range *range = &ids->ranges[at];

        if (shown >= range->inside && shown - range->inside < range->count)
            return range->disk + (shown - range->inside);
    }
    return ids->count ? UFS_OVERFLOW_ID : shown;
}
