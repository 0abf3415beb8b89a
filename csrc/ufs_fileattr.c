#define _GNU_SOURCE
#include "ufs_fileattr.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "ufs_marks.h"

static const unsigned GUARDS = FS_IMMUTABLE_FL | FS_APPEND_FL;
static const unsigned XGUARDS = FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND;
static const unsigned COPIED = FS_SYNC_FL | FS_NOATIME_FL;

bool ufs_is_unmapped(int fd, const char *path, const struct stat *status)
{
    return (status->st_uid == UFS_OVERFLOW_ID || status->st_gid == UFS_OVERFLOW_ID)
           && faccessat(fd, path, W_OK, AT_EACCESS | AT_SYMLINK_NOFOLLOW) && errno == EACCES;
}

static void keep_guards(struct ufs_node *node, unsigned guards)
{
    node->flags &= (uint16_t)~(UFS_IMMUTABLE | UFS_APPEND);
    node->flags |= UFS_GUARDS_KNOWN;
    if (guards & FS_IMMUTABLE_FL)
        node->flags |= UFS_IMMUTABLE;
    if (guards & FS_APPEND_FL)
        node->flags |= UFS_APPEND;
}

static void read_guards(const struct ufs_table *table, struct ufs_node *node)
{
    char buffer[UFS_PATH_SIZE], *path, mark[2];
    unsigned guards = 0;
    struct statx status;
    ssize_t length;
    int fd;

    path = ufs_is_removed(node) ? NULL : ufs_locate(table, node, &fd, buffer);
    if (!path)
        return;
    if (node->flags & UFS_UPPER) {
        length = ufs_mark(table, fd, path, UFS_MARK_PROTATTR, mark, sizeof mark);
        for (ssize_t at = 0; at < length; at++)
            guards |= mark[at] == 'i' ? FS_IMMUTABLE_FL : mark[at] == 'a' ? FS_APPEND_FL : 0;
    } else if (!statx(fd, path, AT_SYMLINK_NOFOLLOW, 0, &status)) {
        guards = status.stx_attributes & GUARDS; /* as STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND */
    }
    keep_guards(node, guards);
}

unsigned ufs_guards(const struct ufs_table *table, struct ufs_node *node)
{
    if (!(node->flags & UFS_GUARDS_KNOWN))
        read_guards(table, node);
    return (node->flags & UFS_IMMUTABLE ? FS_IMMUTABLE_FL : 0)
           | (node->flags & UFS_APPEND ? FS_APPEND_FL : 0);
}

/* Write down which guards a file of upper has: 0 or -errno. */
static int set_mark(const struct ufs_table *table, int fd, unsigned guards)
{
    char buffer[UFS_MARK_NAME_SIZE], mark[2];
    const char *name = ufs_mark_name(table, UFS_MARK_PROTATTR, buffer);
    size_t length = 0;

    if (guards & FS_APPEND_FL)
        mark[length++] = 'a';
    if (guards & FS_IMMUTABLE_FL)
        mark[length++] = 'i';
    if (length && fsetxattr(fd, name, mark, length, 0))
        return errno == EOPNOTSUPP ? -EPERM : -errno;
    if (!length && fremovexattr(fd, name) && errno != EOPNOTSUPP && errno != ENODATA)
        return -errno;
    return 0;
}

static bool has_no_flags(void)
{
    return errno == ENOTTY || errno == EINVAL || errno == EOPNOTSUPP;
}

int ufs_copy_flags(const struct ufs_table *table, int source, int copy)
{
    unsigned flags, own;
    int failed = 0;

    if (ioctl(source, FS_IOC_GETFLAGS, &flags))
        return has_no_flags() ? 0 : -errno;
    if (flags & GUARDS)
        failed = set_mark(table, copy, flags);
    if (failed && failed != -EPERM)
        return failed;
    if (!(flags & COPIED))
        return 0;
    if (!ioctl(copy, FS_IOC_GETFLAGS, &own)) {
        own |= flags & COPIED;
        if (!ioctl(copy, FS_IOC_SETFLAGS, &own))
            return 0;
    }
    return has_no_flags() || errno == EPERM ? 0 : -errno;
}

bool ufs_is_fileattr(unsigned command)
{
    return command == FS_IOC_GETFLAGS || command == FS_IOC_FSGETXATTR || ufs_sets_fileattr(command);
}

bool ufs_sets_fileattr(unsigned command)
{
    return command == FS_IOC_SETFLAGS || command == FS_IOC_FSSETXATTR;
}

/* 0 or -errno. */
static int put_guards(const struct ufs_table *table, struct ufs_node *node, int fd,
                      unsigned guards)
{
    unsigned own;
    int failed = 0;

    if (ioctl(fd, FS_IOC_GETFLAGS, &own))
        return -errno;
    if (guards | ufs_guards(table, node) | (own & GUARDS))
        failed = set_mark(table, fd, guards);
    if (!failed)
        keep_guards(node, guards);
    return failed;
}

/* The length of the answer, or -errno; the flags are told in two ways. */
static int get_flags(unsigned guards, int fd, void *out)
{
    unsigned flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
        return -errno;
    flags |= guards;
    memcpy(out, &flags, sizeof flags);
    return sizeof flags;
}

static int get_xflags(unsigned guards, int fd, void *out)
{
    struct fsxattr flags;

    if (ioctl(fd, FS_IOC_FSGETXATTR, &flags))
        return -errno;
    flags.fsx_xflags |= (guards & FS_IMMUTABLE_FL ? FS_XFLAG_IMMUTABLE : 0)
                        | (guards & FS_APPEND_FL ? FS_XFLAG_APPEND : 0);
    memcpy(out, &flags, sizeof flags);
    return sizeof flags;
}

int ufs_fileattr(const struct ufs_table *table, struct ufs_node *node, int fd, unsigned command,
                 const void *in, size_t size, void *out)
{
    struct fsxattr xflags;
    unsigned flags;
    int failed;

    if (command == FS_IOC_GETFLAGS)
        return get_flags(ufs_guards(table, node), fd, out);
    if (command == FS_IOC_FSGETXATTR)
        return get_xflags(ufs_guards(table, node), fd, out);
    if (command == FS_IOC_SETFLAGS && size >= sizeof flags) {
        memcpy(&flags, in, sizeof flags);
        failed = put_guards(table, node, fd, flags & GUARDS);
        flags &= ~GUARDS;
        return failed ? failed : ioctl(fd, FS_IOC_SETFLAGS, &flags) ? -errno : 0;
    }
    if (command == FS_IOC_FSSETXATTR && size >= sizeof xflags) {
        memcpy(&xflags, in, sizeof xflags);
        flags = (xflags.fsx_xflags & FS_XFLAG_IMMUTABLE ? FS_IMMUTABLE_FL : 0)
                | (xflags.fsx_xflags & FS_XFLAG_APPEND ? FS_APPEND_FL : 0);
        failed = put_guards(table, node, fd, flags);
        xflags.fsx_xflags &= ~XGUARDS;
        return failed ? failed : ioctl(fd, FS_IOC_FSSETXATTR, &xflags) ? -errno : 0;
    }
    return -EINVAL;
}
