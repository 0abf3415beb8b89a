#define _GNU_SOURCE
#include "ufs_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* System calls from number 424 on have the same number everywhere but on alpha. */
enum { UFS_SYS_OPENAT2 = 437, UFS_SYS_GETXATTRAT = 464, UFS_SYS_LISTXATTRAT = 465 };
enum { UFS_OPENAT2_ATTEMPTS = 16 };

/* linux/openat2.h */
struct ufs_open_how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};
enum { UFS_NO_MAGICLINKS = 0x02, UFS_NO_SYMLINKS = 0x04, UFS_BENEATH = 0x08 };

/* linux/xattr.h */
struct ufs_xattr_args {
    uint64_t value;
    uint32_t size;
    uint32_t flags;
};

int ufs_open_beneath(int dir_fd, const char *path, int flags, mode_t mode)
{
    int creates = flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY));
    struct ufs_open_how how = {
        .flags = (unsigned)flags | O_CLOEXEC,
        .mode = creates ? mode : 0,
        .resolve = UFS_BENEATH | UFS_NO_SYMLINKS | UFS_NO_MAGICLINKS,
    };
    long fd = -1;

    /* EAGAIN: a rename elsewhere made it uncertain whether a ".." stayed beneath. */
    for (int attempt = 0; attempt < UFS_OPENAT2_ATTEMPTS; attempt++) {
        fd = syscall(UFS_SYS_OPENAT2, dir_fd, path, &how, sizeof how);
        if (fd != -1 || errno != EAGAIN)
            break;
    }
    return (int)fd;
}

/* A path below /proc for the calls that take no descriptor. "" is dir_fd itself: then the link is
 * followed, a symlink that it leads to is not. No other call takes an O_PATH descriptor, not even
 * getxattrat(2) with AT_EMPTY_PATH. */
struct ufs_link {
    char path[sizeof "/proc/self/fd/-2147483648/" + PATH_MAX];
};

static int link_to(struct ufs_link *link, int dir_fd, const char *path)
{
    int length = snprintf(link->path, sizeof link->path, *path ? "/proc/self/fd/%d/%s"
                                                               : "/proc/self/fd/%d", dir_fd, path);

    if ((size_t)length < sizeof link->path)
        return 0;
    errno = ENAMETOOLONG;
    return -1;
}

/* Whether one of the calls since Linux 6.13 may be tried, three times as fast as the way through
 * /proc. But an absolute path leaves dir_fd, which it cannot below /proc. */
static int is_beneath(const char *path)
{
    return *path && *path != '/';
}

static int is_refused(ssize_t result)
{
    return result == -1 && (errno == ENOSYS || errno == EPERM);
}

ssize_t ufs_get_xattr(int dir_fd, const char *path, const char *name, void *value, size_t size)
{
    struct ufs_xattr_args args = { .value = (uintptr_t)value, .size = (uint32_t)size };
    struct ufs_link link;
    ssize_t found;

    if (is_beneath(path)) {
        found = syscall(UFS_SYS_GETXATTRAT, dir_fd, path, AT_SYMLINK_NOFOLLOW, name, &args,
                        sizeof args);
        if (!is_refused(found))
            return found;
    }
    if (link_to(&link, dir_fd, path))
        return -1;
    return *path ? lgetxattr(link.path, name, value, size)
                 : getxattr(link.path, name, value, size);
}

ssize_t ufs_list_xattr(int dir_fd, const char *path, char *names, size_t size)
{
    struct ufs_link link;
    ssize_t found;

    if (is_beneath(path)) {
        found = syscall(UFS_SYS_LISTXATTRAT, dir_fd, path, AT_SYMLINK_NOFOLLOW, names, size);
        if (!is_refused(found))
            return found;
    }
    if (link_to(&link, dir_fd, path))
        return -1;
    return *path ? llistxattr(link.path, names, size) : listxattr(link.path, names, size);
}

ssize_t ufs_get_dents(int fd, void *buffer, size_t size)
{
    return syscall(SYS_getdents64, fd, buffer, size);
}

enum { UFS_PAGE = 4096 };

int ufs_write_all(int fd, const char *data, size_t size, off_t offset)
{
    ssize_t written;

    for (; size; data += written, size -= (size_t)written, offset += written) {
        do
            written = pwrite(fd, data, size, offset);
        while (written == -1 && errno == EINTR);
        if (written == -1)
            return -1;
    }
    return 0;
}

static int is_hole(const char *data, size_t at, size_t size)
{
    return size - at >= UFS_PAGE && !data[at] && !memcmp(data + at, data + at + 1, UFS_PAGE - 1);
}

off_t ufs_write_sparsely(int fd, const char *data, size_t size, off_t offset)
{
    off_t end = offset;

    for (size_t start = 0, stop; start < size; start = stop) {
        stop = start + UFS_PAGE;
        if (is_hole(data, start, size))
            continue;
        while (stop < size && !is_hole(data, stop, size))
            stop += UFS_PAGE;
        if (stop > size)
            stop = size;
        end = offset + (off_t)stop;
        if (ufs_write_all(fd, data + start, stop - start, offset + (off_t)start))
            return -1;
    }
    return end;
}

int ufs_complete(int fd, const char *data, size_t size, struct timespec time,
                 struct ufs_owner_and_mode lacking)
{
    const struct timespec times[2] = { time, time };
    off_t end = ufs_write_sparsely(fd, data, size, 0);
    int error = 0;

    if (end == -1 || (end < (off_t)size && ftruncate(fd, (off_t)size)) ||
        (lacking.uid != (uid_t)-1 && fchown(fd, lacking.uid, lacking.gid)) ||
        (lacking.mode != -1 && fchmod(fd, (mode_t)lacking.mode)) || futimens(fd, times))
        error = errno;
    if (close(fd) && !error)
        error = errno;
    errno = error;
    return error ? -1 : 0;
}
