#define _GNU_SOURCE
#include "ufs_copyup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_fileattr.h"
#include "ufs_marks.h"

void ufs_name_draft(struct ufs_table *table, char draft[UFS_DRAFT_SIZE])
{
    snprintf(draft, UFS_DRAFT_SIZE, "##%llx", (unsigned long long)++table->drafts);
}

int ufs_plan_copy(struct ufs_table *table, const struct ufs_node *node, struct ufs_copy *copy)
{
    const struct stat *status = &copy->status;

    if ((node->type != DT_REG && node->type != DT_DIR) || !node->names
        || node->names->next_of_node)
        return 0;
    copy->path = ufs_locate(table, node, &copy->layer, copy->buffer);
    if (!copy->path || fstatat(copy->layer, copy->path, &copy->status, AT_SYMLINK_NOFOLLOW))
        return -errno;
    if (table->idmapped && ufs_is_unmapped(copy->layer, copy->path, &copy->status))
        return -EOVERFLOW;
    ufs_name_draft(table, copy->draft);
    if (S_ISDIR(status->st_mode))
        return node->type == DT_DIR;
    return S_ISREG(status->st_mode) && status->st_nlink == 1 && status->st_size <= UFS_COPIED_MAX
           && status->st_blocks * 512 >= status->st_size;
}

/* A file that has become shorter reads as zeros from its end on. */
static int copy_data(int source, int copy, const struct stat *status, uint64_t size, char *buffer)
{
    size_t wanted = size < (uint64_t)status->st_size ? (size_t)size : (size_t)status->st_size;
    size_t done = 0;
    ssize_t length;

    if (!wanted)
        return 0;
    if (wanted == (size_t)status->st_size && !ioctl(copy, FICLONE, source))
        return 0;
    do {
        length = read(source, buffer + done, wanted - done);
        if (length == -1)
            return -errno;
        done += (size_t)length;
    } while (length && done < wanted);
    if (ufs_write_all(copy, buffer, done, 0))
        return -errno;
    return done < wanted && ftruncate(copy, (off_t)wanted) ? -errno : 0;
}

/* Whether an attribute may be left out where it cannot be set. */
static bool may_lack(const char *name)
{
    return (!strncmp(name, "security.", 9) || !strncmp(name, "trusted.", 8))
           && (errno == EPERM || errno == EOPNOTSUPP);
}

static int copy_xattrs(const struct ufs_table *table, const struct ufs_copy *from, int copy,
                       char *buffer)
{
    char *value = buffer + XATTR_LIST_MAX;
    ssize_t length = ufs_list_xattr(from->layer, from->path, buffer, XATTR_LIST_MAX), size;

    if (length == -1)
        return errno == EOPNOTSUPP ? 0 : -errno;
    for (char *name = buffer; name < buffer + length; name += strlen(name) + 1) {
        if (ufs_is_mark(table, name) && !ufs_is_escaped(table, name))
            continue;
        size = ufs_get_xattr(from->layer, from->path, name, value, XATTR_SIZE_MAX);
        if (size == -1 && errno == ENODATA)
            continue;
        if (size == -1 || (fsetxattr(copy, name, value, (size_t)size, 0) && !may_lack(name)))
            return -errno;
    }
    return 0;
}

static int set_origin(const struct ufs_table *table, const struct ufs_copy *from, int copy)
{
    unsigned char mark[UFS_ORIGIN_MAX];
    char name[UFS_MARK_NAME_SIZE];
    ssize_t size = ufs_make_origin(table, from->layer, from->path, from->status.st_dev, mark);

    if (size == -1)
        return -errno;
    if (fsetxattr(copy, ufs_mark_name(table, UFS_MARK_ORIGIN, name), mark, (size_t)size, 0)
        && errno != EPERM && errno != EOPNOTSUPP)
        return -errno;
    return 0;
}

/* In the order of copyup.copy_attributes: a change of owner drops set-id bits and capabilities. */
static int copy_attributes(const struct ufs_table *table, const struct ufs_copy *from, int copy,
                           char *buffer)
{
    const struct stat *status = &from->status;
    struct timespec times[2] = { status->st_atim, status->st_mtim };
    int failed;

    if ((status->st_uid != geteuid() || status->st_gid != getegid())
        && fchown(copy, status->st_uid, status->st_gid))
        return -errno;
    failed = copy_xattrs(table, from, copy, buffer);
    if (failed)
        return failed;
    if (fchmod(copy, status->st_mode & 07777) || futimens(copy, times))
        return -errno;
    return set_origin(table, from, copy);
}

/* As copyup._sync. */
static int sync_copy(const struct ufs_table *table, int copy)
{
    if (!table->durable)
        return 0;
    if (!table->ordered || table->strict)
        return fsync(copy);
    return sync_file_range(copy, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE
                                           | SYNC_FILE_RANGE_WAIT_AFTER);
}

static void discard(const struct ufs_table *table, const struct ufs_copy *copy)
{
    unlinkat(table->work, copy->draft, S_ISDIR(copy->status.st_mode) ? AT_REMOVEDIR : 0);
}

int ufs_build_copy(const struct ufs_table *table, const struct ufs_copy *from, uint64_t size,
                   char *buffer)
{
    bool directory = S_ISDIR(from->status.st_mode);
    int source = -1, failed = 0, copy;

    if (directory && mkdirat(table->work, from->draft, 0700))
        return -errno;
    copy = openat(table->work, from->draft,
                  directory ? O_RDONLY | O_DIRECTORY | O_CLOEXEC
                            : O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (copy == -1)
        return -errno;
    source = ufs_open_beneath(from->layer, from->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (source == -1 && !(directory && errno == EACCES)) /* whose flags nobody could tell us */
        failed = -errno;
    if (!failed && !directory)
        failed = copy_data(source, copy, &from->status, size, buffer);
    if (!failed)
        failed = copy_attributes(table, from, copy, buffer);
    if (!failed && source != -1)
        failed = ufs_copy_flags(table, source, copy);
    if (!failed && (!directory || table->strict) && sync_copy(table, copy))
        failed = -errno;
    if (source != -1)
        close(source);
    close(copy);
    if (failed)
        discard(table, from);
    return failed;
}

int ufs_set_impure(const struct ufs_table *table, struct ufs_node *directory)
{
    char buffer[UFS_PATH_SIZE], *path;

    if (directory->flags & UFS_IMPURE)
        return 0;
    path = ufs_upper_path(directory, NULL, buffer);
    if (!path || (ufs_set_mark(table, table->layers[0].fd, path, UFS_MARK_IMPURE)
                  && errno != EPERM && errno != EOPNOTSUPP))
        return -errno;
    directory->flags |= UFS_IMPURE;
    return 0;
}

/* Files opened before read the copy from now on, as on kernel overlayfs. */
static int follow(struct ufs_table *table, struct ufs_node *node, const char *path)
{
    struct ufs_file *file;
    int fd;

    for (int open = node->open ? node->open->first : -1; open != -1; open = file->next) {
        file = &table->files[open];
        if (!file->lower)
            continue;
        fd = ufs_open_beneath(table->layers[0].fd, path, file->flags, 0);
        if (fd == -1 || dup3(fd, open, O_CLOEXEC) == -1)
            return -errno;
        close(fd);
        file->lower = false;
    }
    return 0;
}

int ufs_install_copy(struct ufs_table *table, struct ufs_node *node, const struct ufs_copy *copy)
{
    char path_buffer[UFS_PATH_SIZE], parent_buffer[UFS_PATH_SIZE], *path, *parent_path;
    struct ufs_node *parent = node->names->parent;
    int upper = table->layers[0].fd, failed;
    struct timespec times[2];
    struct stat status;

    path = ufs_upper_path(node, NULL, path_buffer);
    parent_path = ufs_upper_path(parent, NULL, parent_buffer);
    failed = !path || !parent_path || fstatat(upper, parent_path, &status, AT_SYMLINK_NOFOLLOW)
                 ? -errno
                 : 0;
    if (!failed && renameat2(table->work, copy->draft, upper, path, RENAME_NOREPLACE))
        failed = -errno;
    if (failed) {
        discard(table, copy);
        return failed;
    }
    node->flags |= node->type == DT_DIR ? UFS_UPPER : UFS_UPPER | UFS_ORIGIN;
    ufs_forget_names_above(parent);
    times[0] = status.st_atim;
    times[1] = status.st_mtim;
    failed = utimensat(upper, parent_path, times, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
    return failed ? failed : follow(table, node, path);
}
