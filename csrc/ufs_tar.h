/* The headers of tar archives. No Python in here. */
#ifndef UFS_TAR_H
#define UFS_TAR_H

#include <stddef.h>
#include <stdint.h>

enum { UFS_TAR_RECORD = 512, UFS_TAR_NAME = 100, UFS_TAR_PREFIX = 155 };

/* Of POSIX' headers; others have no prefix. With the version that follows it. */
#define UFS_TAR_MAGIC "ustar\00000"

/* POSIX.1-2017, pax, "ustar Interchange Format". Texts end with NUL where they are shorter. */
struct ufs_tar_header {
    char name[UFS_TAR_NAME];
    char mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8];
    char kind;
    char target[UFS_TAR_NAME];
    char magic[8];
    char owner[32], group[32], major[8], minor[8];
    char prefix[UFS_TAR_PREFIX];
    char rest[12];
};

/* Whether the checksum fits: the sum of all bytes, its own taken for spaces. */
int ufs_tar_is_header(const struct ufs_tar_header *header);

/* A number in octal, or in base 256 where its first bit is set. -1 where it is none. */
int ufs_tar_number(const char *field, size_t size, int64_t *number);

#endif
