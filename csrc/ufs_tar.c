#include "ufs_tar.h"

_Static_assert(sizeof(struct ufs_tar_header) == UFS_TAR_RECORD, "a header is one record");

int ufs_tar_is_header(const struct ufs_tar_header *header)
{
    const unsigned char *byte = (const unsigned char *)header;
    const unsigned char *sums = (const unsigned char *)header->checksum;
    int64_t sum = 0, wanted;

    for (size_t at = 0; at < sizeof *header; at++)
        sum += byte[at];
    for (size_t at = 0; at < sizeof header->checksum; at++)
        sum += ' ' - sums[at];
    return !ufs_tar_number(header->checksum, sizeof header->checksum, &wanted) && sum == wanted;
}

static int is_blank(char byte)
{
    return !byte || byte == ' ';
}

int ufs_tar_number(const char *field, size_t size, int64_t *number)
{
    const char *at = field, *end = field + size;
    int64_t value = 0;

    if (*at & 0x80) {
        value = (*at & 0x3f) - (*at & 0x40);
        while (++at < end) {
            if (value > INT64_MAX / 256 || value < INT64_MIN / 256)
                return -1;
            value = value * 256 + (unsigned char)*at;
        }
        *number = value;
        return 0;
    }
    while (at < end && is_blank(*at))
        at++;
    while (at < end && is_blank(end[-1]))
        end--;
    for (; at < end; at++) {
        if (*at < '0' || *at > '7')
            return -1;
        value = value * 8 + (*at - '0'); /* fields are of 12 bytes at most */
    }
    *number = value;
    return 0;
}
