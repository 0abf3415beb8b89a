#define _GNU_SOURCE
#include "ufs_marks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "ufs_calls.h"

const char *ufs_mark_name(const struct ufs_table *table, const char *mark,
                          char name[UFS_MARK_NAME_SIZE])
{
    snprintf(name, UFS_MARK_NAME_SIZE, "%s%s", table->prefix, mark);
    return name;
}

ssize_t ufs_mark(const struct ufs_table *table, int fd, const char *path, const char *mark,
                 void *value, size_t size)
{
    char name[UFS_MARK_NAME_SIZE];

    return ufs_get_xattr(fd, path, ufs_mark_name(table, mark, name), value, size);
}

bool ufs_has_mark(const struct ufs_table *table, int fd, const char *path, const char *mark)
{
    char value[1];

    return ufs_mark(table, fd, path, mark, value, sizeof value) >= 0 || errno == ERANGE;
}

char ufs_opaque(const struct ufs_table *table, int fd, const char *path)
{
    char value;

    return ufs_mark(table, fd, path, UFS_MARK_OPAQUE, &value, sizeof value) == 1 ? value : 0;
}

int ufs_set_mark(const struct ufs_table *table, int fd, const char *path, const char *mark)
{
    return ufs_set_text(table, fd, path, mark, "y");
}

int ufs_set_text(const struct ufs_table *table, int fd, const char *path, const char *mark,
                 const char *text)
{
    char name[UFS_MARK_NAME_SIZE], link[UFS_PATH_SIZE + 32];

    snprintf(link, sizeof link, "/proc/self/fd/%d/%s", fd, path);
    return lsetxattr(link, ufs_mark_name(table, mark, name), text, strlen(text), 0);
}

/* What follows the prefix of marks in an attribute's name; NULL where it is none. */
static const char *after_prefix(const struct ufs_table *table, const char *name)
{
    size_t length = strlen(table->prefix), fuse = sizeof UFS_FUSE_OVERLAYFS - 1;

    if (!strncmp(name, table->prefix, length))
        return name + length;
    return strncmp(name, UFS_FUSE_OVERLAYFS, fuse) ? NULL : name + fuse;
}

bool ufs_is_mark(const struct ufs_table *table, const char *name)
{
    return after_prefix(table, name);
}

bool ufs_is_escaped(const struct ufs_table *table, const char *name)
{
    const char *mark = after_prefix(table, name);

    return mark && !strncmp(mark, UFS_ESCAPE, sizeof UFS_ESCAPE - 1);
}

/* struct ovl_fb, fs/overlayfs/overlayfs.h: before a file handle. */
struct origin {
    unsigned char version, magic, length, flags, type;
    unsigned char uuid[UFS_UUID_SIZE];
} __attribute__((packed));

enum {
    UFS_ORIGIN_MAGIC = 0xfb,
    UFS_BIG_ENDIAN = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__,
    UFS_ANY_ENDIAN = 2,
    UFS_HANDLE_MAX = 128,
};

int ufs_origin(const struct ufs_table *table, const void *mark, size_t size, struct stat *status)
{
    const struct origin *origin = mark;
    struct {
        struct file_handle head;
        unsigned char data[UFS_HANDLE_MAX];
    } handle;
    int fd, failed;

    if (size <= sizeof *origin || origin->version || origin->magic != UFS_ORIGIN_MAGIC
        || origin->length != size || (origin->flags & ~UFS_ANY_ENDIAN) != UFS_BIG_ENDIAN
        || size - sizeof *origin > UFS_HANDLE_MAX)
        return 0;
    handle.head.handle_bytes = (unsigned)(size - sizeof *origin);
    handle.head.handle_type = origin->type;
    memcpy(handle.data, origin + 1, size - sizeof *origin);
    for (size_t at = 0; at < table->filesystem_count; at++) {
        if (memcmp(table->filesystems[at].uuid, origin->uuid, UFS_UUID_SIZE))
            continue;
        fd = open_by_handle_at(table->filesystems[at].root, &handle.head, O_PATH | O_CLOEXEC);
        if (fd == -1 && errno != EPERM && errno != ESTALE && errno != EOPNOTSUPP)
            return -1;
        if (fd == -1)
            continue;
        failed = fstat(fd, status);
        close(fd);
        return failed ? -1 : 1;
    }
    return 0;
}

ssize_t ufs_make_origin(const struct ufs_table *table, int fd, const char *path, dev_t device,
                        unsigned char mark[UFS_ORIGIN_MAX])
{
    struct origin origin = { .magic = UFS_ORIGIN_MAGIC, .flags = UFS_BIG_ENDIAN };
    struct {
        struct file_handle head;
        unsigned char data[UFS_HANDLE_MAX];
    } handle = { .head.handle_bytes = UFS_HANDLE_MAX };
    const struct ufs_filesystem *filesystem = NULL;
    size_t length;
    int mount;

    for (size_t at = 0; at < table->filesystem_count; at++)
        if (table->filesystems[at].device == device)
            filesystem = &table->filesystems[at];
    if (name_to_handle_at(fd, path, &handle.head, &mount, 0))
        return errno == EOPNOTSUPP || errno == EOVERFLOW ? 0 : -1;
    length = sizeof origin + handle.head.handle_bytes;
    if (!filesystem || length > UFS_ORIGIN_MAX || handle.head.handle_type > UINT8_MAX)
        return 0;
    origin.length = (unsigned char)length;
    origin.type = (unsigned char)handle.head.handle_type;
    memcpy(origin.uuid, filesystem->uuid, UFS_UUID_SIZE);
    memcpy(mark, &origin, sizeof origin);
    memcpy(mark + sizeof origin, handle.data, handle.head.handle_bytes);
    return (ssize_t)length;
}
