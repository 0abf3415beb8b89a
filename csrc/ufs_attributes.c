#define _GNU_SOURCE
#include "ufs_attributes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_fileattr.h"
#include "ufs_files.h"
#include "ufs_marks.h"

struct ufs_statx_out {
    uint64_t valid;
    uint32_t valid_nsec, flags;
    uint64_t spare[2];
    struct statx status; /* so far as struct fuse_statx goes, they are alike */
};

int ufs_on_getattr(struct ufs_turn *turn)
{
    struct ufs_node *node;
    int failed = ufs_at_node(turn, &node);

    return failed ? failed : ufs_tell_attributes(turn, node);
}

/* When the file that answers for a node was made, where its filesystem tells. */
static void add_birth(const struct ufs_turn *turn, const struct ufs_node *node,
                      struct statx *status)
{
    char buffer[UFS_PATH_SIZE], *path = "";
    int fd = node->open ? node->open->first : -1;
    struct statx found;

    if (!ufs_is_removed(node))
        path = ufs_locate(turn->table, node, &fd, buffer);
    if (!path || statx(fd, path, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BTIME, &found)
        || !(found.stx_mask & STATX_BTIME))
        return;
    status->stx_btime = found.stx_btime;
    status->stx_mask |= STATX_BTIME;
}

static struct statx_timestamp timestamp(uint64_t seconds, uint32_t nanoseconds)
{
    return (struct statx_timestamp){ .tv_sec = (int64_t)seconds, .tv_nsec = nanoseconds };
}

/* As getattr, for those who ask when a file was made. */
int ufs_on_statx(struct ufs_turn *turn)
{
    struct ufs_statx_out *out = ufs_room(turn, sizeof *out);
    struct fuse_attr attr;
    struct ufs_node *node;
    struct stat status;
    int failed = ufs_at_node(turn, &node);

    if (!failed)
        failed = ufs_read_status(turn, node, &status);
    if (failed)
        return failed;
    ufs_fill_attributes(turn, node, &status, &attr);
    out->valid = turn->session->seconds;
    out->valid_nsec = turn->session->nanoseconds;
    out->status = (struct statx){
        .stx_mask = STATX_BASIC_STATS,
        .stx_blksize = attr.blksize,
        .stx_nlink = attr.nlink,
        .stx_uid = attr.uid,
        .stx_gid = attr.gid,
        .stx_mode = (uint16_t)attr.mode,
        .stx_ino = attr.ino,
        .stx_size = attr.size,
        .stx_blocks = attr.blocks,
        .stx_atime = timestamp(attr.atime, attr.atimensec),
        .stx_mtime = timestamp(attr.mtime, attr.mtimensec),
        .stx_ctime = timestamp(attr.ctime, attr.ctimensec),
        .stx_rdev_major = major(status.st_rdev),
        .stx_rdev_minor = minor(status.st_rdev),
    };
    add_birth(turn, node, &out->status);
    return 0;
}

int ufs_on_readlink(struct ufs_turn *turn)
{
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    ssize_t length;
    int fd, failed = ufs_at_node(turn, &node);

    if (failed)
        return failed;
    path = ufs_locate(turn->table, node, &fd, buffer);
    length = path ? readlinkat(fd, path, turn->reply, UFS_PATH_SIZE) : -1;
    if (length == -1)
        return -errno;
    turn->length = (size_t)length;
    return 0;
}

static int set_times(const struct fuse_setattr_in *in, int fd, const char *path)
{
    struct timespec times[2] = {
        { .tv_sec = (time_t)in->atime, .tv_nsec = in->atimensec },
        { .tv_sec = (time_t)in->mtime, .tv_nsec = in->mtimensec },
    };

    if (!(in->valid & FATTR_ATIME))
        times[0].tv_nsec = UTIME_OMIT;
    else if (in->valid & FATTR_ATIME_NOW)
        times[0].tv_nsec = UTIME_NOW;
    if (!(in->valid & FATTR_MTIME))
        times[1].tv_nsec = UTIME_OMIT;
    else if (in->valid & FATTR_MTIME_NOW)
        times[1].tv_nsec = UTIME_NOW;
    return utimensat(fd, path, times, AT_SYMLINK_NOFOLLOW);
}

/* Whether it is a chown(2), perhaps for nobody else, which takes set-id bits off. The kernel asks for
 * that before a write, too, that it passes through: fuse_setattr with FUSE_HANDLE_KILLPRIV_V2 leaves
 * nothing else of it. */
static bool is_chown(const struct fuse_setattr_in *in)
{
    return in->valid & (FATTR_UID | FATTR_GID)
           || !(in->valid & (FATTR_SIZE | FATTR_MODE | FATTR_ATIME | FATTR_MTIME));
}

/* As Operations._giving: it may be refused where it would not be seen anyway. */
static int set_owner(const struct ufs_turn *turn, const struct fuse_setattr_in *in, int fd,
                     const char *path)
{
    const struct ufs_ids *users = &turn->session->users, *groups = &turn->session->groups;
    uid_t uid = in->valid & FATTR_UID ? ufs_on_disk(users, in->uid) : (uid_t)-1;
    gid_t gid = in->valid & FATTR_GID ? ufs_on_disk(groups, in->gid) : (gid_t)-1;

    if (!fchownat(fd, path, uid, gid, AT_SYMLINK_NOFOLLOW))
        return 0;
    return (users->squashed || groups->squashed) && (errno == EPERM || errno == EINVAL) ? 0 : -1;
}

static int set_size(struct ufs_turn *turn, const struct fuse_setattr_in *in, int layer,
                    const char *path)
{
    int fd = ufs_open_beneath(layer, path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK, 0), failed;

    if (fd == -1)
        return -1;
    failed = ftruncate(fd, (off_t)in->size);
    if (!failed && in->valid & FATTR_KILL_SUIDGID)
        ufs_drop_set_id(turn, fd);
    close(fd);
    return failed;
}

/* The flags of a file that is not to be changed so. When an append-only file was written through its
 * writeback cache, the kernel sets its times. */
static unsigned refused(const struct ufs_session *session, const struct fuse_setattr_in *in)
{
    bool touched = in->valid & FATTR_ATIME_NOW && (in->valid & FATTR_MTIME_NOW || session->writeback);
    bool appended = session->writeback && !(in->valid & FATTR_ATIME);

    if (in->valid & (FATTR_MODE | FATTR_UID | FATTR_GID))
        return UFS_GUARDS;
    if (is_chown(in))
        return 0;
    if (in->valid & FATTR_SIZE)
        return in->valid & FATTR_FH ? FS_APPEND_FL : UFS_GUARDS; /* FH: who was let open it */
    return touched || appended ? FS_IMMUTABLE_FL : UFS_GUARDS;
}

int ufs_on_setattr(struct ufs_turn *turn)
{
    const struct fuse_setattr_in *in = turn->argument;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    int fd, failed = ufs_at_node(turn, &node);

    if (failed)
        return failed;
    if (ufs_is_removed(node)) /* nobody has it: times that the kernel kept for its last write */
        return node->open ? UFS_FORWARD : -ESTALE;
    failed = ufs_refuse(turn, node, refused(turn->session, in));
    if (!failed)
        failed = ufs_copy_up(turn, node, in->valid & FATTR_SIZE ? in->size : UINT64_MAX);
    if (failed)
        return failed;
    path = ufs_locate(turn->table, node, &fd, buffer);
    if (!path)
        return -errno;
    if (in->valid & FATTR_SIZE && set_size(turn, in, fd, path))
        return -errno;
    if (is_chown(in) && set_owner(turn, in, fd, path))
        return -errno;
    if (in->valid & FATTR_MODE && node->type == DT_LNK)
        return -EOPNOTSUPP;
    if (in->valid & FATTR_MODE && fchmodat(fd, path, in->mode & 07777, 0))
        return -errno;
    if (in->valid & (FATTR_ATIME | FATTR_MTIME) && set_times(in, fd, path))
        return -errno;
    return ufs_tell_attributes(turn, node);
}

int ufs_on_getxattr(struct ufs_turn *turn)
{
    const struct fuse_getxattr_in *in = turn->argument;
    const char *name = (const char *)(in + 1);
    char buffer[UFS_PATH_SIZE], *path;
    struct fuse_getxattr_out *out;
    struct ufs_node *node;
    ssize_t length;
    int fd, failed = ufs_at_node(turn, &node);

    if (failed)
        return failed;
    if (!turn->session->xattrs || ufs_is_removed(node) || ufs_is_mark(turn->table, name))
        return UFS_FORWARD;
    path = ufs_locate(turn->table, node, &fd, buffer);
    length = path ? ufs_get_xattr(fd, path, name, in->size ? turn->reply : NULL, in->size) : -1;
    if (length == -1)
        return -errno;
    turn->length = (size_t)length;
    if (!in->size) {
        turn->length = 0;
        out = ufs_room(turn, sizeof *out);
        out->size = (uint32_t)length;
    }
    return 0;
}

int ufs_on_listxattr(struct ufs_turn *turn)
{
    const struct fuse_getxattr_in *in = turn->argument;
    char buffer[UFS_PATH_SIZE], *path, *name, *next;
    struct fuse_getxattr_out *out;
    struct ufs_node *node;
    ssize_t length;
    size_t kept = 0, size;
    int fd, failed = ufs_at_node(turn, &node);

    if (failed)
        return failed;
    if (!turn->session->xattrs || ufs_is_removed(node))
        return UFS_FORWARD;
    path = ufs_locate(turn->table, node, &fd, buffer);
    if (!path)
        return -errno;
    length = ufs_list_xattr(fd, path, turn->reply, XATTR_LIST_MAX);
    if (length == -1)
        return -errno;
    for (name = turn->reply; name < turn->reply + length; name = next) {
        size = strlen(name) + 1;
        next = name + size;
        if (ufs_is_escaped(turn->table, name))
            return UFS_FORWARD;
        if (ufs_is_mark(turn->table, name))
            continue;
        memmove(turn->reply + kept, name, size);
        kept += size;
    }
    if (in->size && kept > in->size)
        return -ERANGE;
    turn->length = kept;
    if (!in->size) {
        turn->length = 0;
        out = ufs_room(turn, sizeof *out);
        out->size = (uint32_t)kept;
    }
    return 0;
}

/* What chattr(1) and lsattr(1) ask for. */
int ufs_on_ioctl(struct ufs_turn *turn)
{
    const struct fuse_ioctl_in *in = turn->argument;
    const struct ufs_asked *asked = &turn->session->asked;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    int layer, fd, failed;

    if (!ufs_is_fileattr(in->cmd))
        return -ENOTTY; /* as isatty(3) wants it */
    failed = ufs_at_node(turn, &node);
    if (!failed && ufs_sets_fileattr(in->cmd) && !ufs_is_removed(node)) {
        failed = ufs_copy_up(turn, node, UINT64_MAX);
        if (failed == UFS_FORWARD)
            failed = asked->copy_up(asked->context, node->id);
        turn->invalid = node->id; /* its change time */
    }
    if (failed)
        return failed;
    if (node->type != DT_REG && node->type != DT_DIR)
        return -ENOTTY;
    if (ufs_is_removed(node)) {
        fd = node->open && node->open->first != -1 ? dup(node->open->first) : -1;
    } else {
        path = ufs_locate(turn->table, node, &layer, buffer);
        fd = path ? ufs_open_beneath(layer, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0) : -1;
    }
    if (fd == -1)
        return -errno;
    ufs_room(turn, sizeof(struct fuse_ioctl_out));
    failed = ufs_fileattr(turn->table, node, fd, in->cmd, in + 1, in->in_size,
                          turn->reply + turn->length);
    close(fd);
    if (failed < 0)
        return failed;
    turn->length += (size_t)failed;
    return 0;
}

/* Of the top layer's filesystem, as overlayfs tells. */
int ufs_on_statfs(struct ufs_turn *turn)
{
    struct fuse_statfs_out *out = ufs_room(turn, sizeof *out);
    struct statvfs found;

    if (fstatvfs(turn->table->layers[0].fd, &found) == -1)
        return -errno;
    out->st = (struct fuse_kstatfs){
        .blocks = found.f_blocks, .bfree = found.f_bfree, .bavail = found.f_bavail,
        .files = found.f_files, .ffree = found.f_ffree, .bsize = (uint32_t)found.f_bsize,
        .namelen = (uint32_t)found.f_namemax, .frsize = (uint32_t)found.f_frsize,
    };
    return 0;
}
