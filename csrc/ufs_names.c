#define _GNU_SOURCE
#include "ufs_names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_copyup.h"
#include "ufs_files.h"
#include "ufs_marks.h"

int ufs_on_lookup(struct ufs_turn *turn)
{
    struct ufs_node *parent, *node;
    struct fuse_entry_out *absent;
    struct stat status;
    bool filled;
    int found = ufs_at_directory(turn, &parent);

    if (found)
        return found;
    found = ufs_find(turn->table, &turn->session->asked, parent, turn->argument, &node, &status,
                     &filled);
    if (found == UFS_ABSENT) {
        absent = ufs_room(turn, sizeof *absent);
        absent->entry_valid = turn->session->seconds;
        absent->entry_valid_nsec = turn->session->nanoseconds;
        return 0;
    }
    if (found == UFS_FOUND && !filled)
        found = ufs_read_status(turn, node, &status);
    return found < 0 ? found : ufs_tell(turn, node, &status);
}

int ufs_on_forget(struct ufs_turn *turn)
{
    const struct fuse_forget_in *forget = turn->argument;
    struct ufs_node *node = ufs_node(turn->table, turn->in->nodeid);

    if (node)
        ufs_forget(turn->table, node, forget->nlookup);
    return UFS_SILENT;
}

int ufs_on_batch_forget(struct ufs_turn *turn)
{
    const struct fuse_batch_forget_in *batch = turn->argument;
    const struct fuse_forget_one *one = (const void *)(batch + 1);
    struct ufs_node *node;

    for (uint32_t at = 0; at < batch->count; at++) {
        node = ufs_node(turn->table, one[at].nodeid);
        if (node)
            ufs_forget(turn->table, node, one[at].nlookup);
    }
    return UFS_SILENT;
}

bool ufs_is_for_python(const char *name)
{
    return !strncmp(name, UFS_AUFS_PREFIX, sizeof UFS_AUFS_PREFIX - 1)
           || strlen(name) >= UFS_NAME_SIZE;
}

static dev_t decoded_device(uint32_t device)
{
    return makedev((device & 0xfff00) >> 8, (device & 0xff) | (device >> 12 & ~0xffu));
}

/* The directory that shall get a name, in upper: 0, or what to return. */
static int new_parent(struct ufs_turn *turn, struct ufs_node **parent)
{
    int failed = ufs_at_directory(turn, parent);

    if (!failed)
        failed = ufs_is_removed(*parent) ? -ENOENT : ufs_refuse(turn, *parent, FS_IMMUTABLE_FL);
    return failed ? failed : ufs_copy_up(turn, *parent, 0);
}

/* Where a new file is made: at its name or, over a whiteout, first in work. */
struct making {
    struct ufs_node *parent;
    char *path, buffer[UFS_PATH_SIZE]; /* in upper */
    char draft[UFS_DRAFT_SIZE];        /* "": made in upper at once */
};

/* Whether files made in work become what they would become in a directory of upper, which may pass
 * on its group and its default access control list. */
static bool passes_nothing_on(const struct ufs_turn *turn, const struct ufs_node *directory)
{
    char buffer[UFS_PATH_SIZE], *path = ufs_upper_path(directory, NULL, buffer);
    int upper = turn->table->layers[0].fd;
    struct stat status;

    return path && !fstatat(upper, path, &status, AT_SYMLINK_NOFOLLOW)
           && !(status.st_mode & S_ISGID)
           && ufs_get_xattr(upper, path, "system.posix_acl_default", NULL, 0) == -1
           && (errno == ENODATA || errno == EOPNOTSUPP);
}

/* Plan the making of a name that the union does not show: 0, or what to return. */
static int plan_making(struct ufs_turn *turn, const char *name, struct making *making)
{
    struct ufs_table *table = turn->table;
    struct stat status;
    int failed, below;

    if (ufs_is_for_python(name))
        return UFS_FORWARD;
    failed = new_parent(turn, &making->parent);
    if (failed)
        return failed;
    making->path = ufs_upper_path(making->parent, name, making->buffer);
    if (!making->path)
        return -errno;
    making->draft[0] = '\0';
    if (!fstatat(table->layers[0].fd, making->path, &status, AT_SYMLINK_NOFOLLOW)) {
        /* It knows whiteouts of other kinds, and what error to give. */
        if (!S_ISCHR(status.st_mode) || status.st_rdev || table->work == -1
            || !passes_nothing_on(turn, making->parent))
            return UFS_FORWARD;
        ufs_name_draft(table, making->draft);
        return 0;
    }
    if (errno != ENOENT)
        return -errno;
    below = ufs_exists_below(table, making->parent, name);
    return below == -1 ? -errno : below ? UFS_FORWARD : 0;
}

static int making_in(const struct ufs_turn *turn, const struct making *making)
{
    return *making->draft ? turn->table->work : turn->table->layers[0].fd;
}

static const char *making_at(const struct making *making)
{
    return *making->draft ? making->draft : making->path;
}

/* Show what was made: 0 or -errno. */
static int show(const struct ufs_turn *turn, const struct making *making, bool directory)
{
    const struct ufs_table *table = turn->table;
    int work = table->work, failed = 0;

    if (!*making->draft)
        return 0;
    if ((directory && ufs_set_mark(table, work, making->draft, UFS_MARK_OPAQUE))
        || renameat2(work, making->draft, table->layers[0].fd, making->path,
                     directory ? RENAME_EXCHANGE : 0))
        failed = -errno;
    if (failed)
        unlinkat(work, making->draft, directory ? AT_REMOVEDIR : 0);
    else if (directory)
        unlinkat(work, making->draft, 0); /* the whiteout */
    return failed;
}

struct ufs_owner {
    uid_t uid;
    gid_t gid;
};

/* Who makes files by a request, as they are on disk. */
static struct ufs_owner caller(const struct ufs_turn *turn)
{
    const struct ufs_session *session = turn->session;

    return (struct ufs_owner){ ufs_on_disk(&session->users, turn->in->uid),
                               ufs_on_disk(&session->groups, turn->in->gid) };
}

static bool is_ourselves(struct ufs_owner owner)
{
    return owner.uid == geteuid() && owner.gid == getegid();
}

/* Make files as the caller, until become_ourselves; as Operations._creating. */
static int become(const struct ufs_turn *turn, uint32_t mask)
{
    const struct ufs_session *session = turn->session;
    struct ufs_owner owner = caller(turn);

    umask(mask);
    if (is_ourselves(owner))
        return 0;
    setfsgid(owner.gid);
    setfsuid(owner.uid);
    if ((uint32_t)setfsgid(-1) == owner.gid && (uint32_t)setfsuid(-1) == owner.uid)
        return 0;
    return session->users.squashed || session->groups.squashed ? 0 : -EPERM;
}

static void become_ourselves(const struct ufs_turn *turn)
{
    if (!is_ourselves(caller(turn))) {
        setfsuid(geteuid());
        setfsgid(getegid());
    }
    umask(0);
}

/* A node for a file just created; NULL without memory. */
static struct ufs_node *new_upper_node(struct ufs_table *table, const struct stat *status)
{
    struct ufs_node *node = ufs_new_node(table, IFTODT(status->st_mode));

    if (!node)
        return NULL;
    node->flags = UFS_UPPER | UFS_GUARDS_KNOWN;
    node->device = status->st_dev;
    node->inode = status->st_ino;
    if (ufs_number(table, status->st_dev, status->st_ino, &node->number))
        return node;
    ufs_drop_unused(table, node);
    return NULL;
}

/* Show the file just made, and make it a node: 0 or -errno. */
static int adopt(struct ufs_turn *turn, const struct making *making, const char *name, bool directory,
                 struct ufs_node **made, struct stat *status)
{
    int failed = show(turn, making, directory);
    struct ufs_table *table = turn->table;
    struct ufs_node *node;

    if (failed)
        return failed;
    if (fstatat(table->layers[0].fd, making->path, status, AT_SYMLINK_NOFOLLOW))
        return -errno;
    node = new_upper_node(table, status);
    if (!node)
        return -ENOMEM;
    if (ufs_bind(table, node, making->parent, name)) {
        ufs_drop_unused(table, node);
        return -ENOMEM;
    }
    ufs_forget_names_above(making->parent);
    *made = node;
    return 0;
}

static int make_node(struct ufs_turn *turn, const char *name, mode_t mode, dev_t device,
                     uint32_t mask, const char *target)
{
    struct making making;
    struct ufs_node *node;
    struct stat status;
    const char *at;
    int failed = plan_making(turn, name, &making), in;

    if (failed)
        return failed;
    in = making_in(turn, &making);
    at = making_at(&making);
    failed = become(turn, mask);
    if (!failed && target)
        failed = symlinkat(target, in, at) ? -errno : 0;
    else if (!failed && S_ISDIR(mode))
        failed = mkdirat(in, at, mode & 07777) ? -errno : 0;
    else if (!failed)
        failed = mknodat(in, at, mode, device) ? -errno : 0;
    become_ourselves(turn);
    if (!failed)
        failed = adopt(turn, &making, name, S_ISDIR(mode), &node, &status);
    if (failed)
        return failed;
    /* The layers below do not hold the name anyway, so this may fail. */
    if (node->type == DT_DIR
        && (*making.draft
            || (ufs_is_merged(making.parent)
                && !ufs_set_mark(turn->table, in, making.path, UFS_MARK_OPAQUE))))
        node->flags |= UFS_OPAQUE;
    return ufs_tell(turn, node, &status);
}

int ufs_on_mknod(struct ufs_turn *turn)
{
    const struct fuse_mknod_in *in = turn->argument;

    if (S_ISCHR(in->mode) && !in->rdev)
        return UFS_FORWARD;
    return make_node(turn, (const char *)(in + 1), in->mode, decoded_device(in->rdev),
                     in->umask, NULL);
}

int ufs_on_mkdir(struct ufs_turn *turn)
{
    const struct fuse_mkdir_in *in = turn->argument;

    return make_node(turn, (const char *)(in + 1), S_IFDIR | (in->mode & 07777), 0, in->umask, NULL);
}

int ufs_on_symlink(struct ufs_turn *turn)
{
    const char *name = turn->argument, *target = name + strlen(name) + 1;

    return make_node(turn, name, S_IFLNK, 0, 0, target);
}

int ufs_on_create(struct ufs_turn *turn)
{
    const struct fuse_create_in *in = turn->argument;
    const char *name = (const char *)(in + 1);
    int flags = ufs_layer_flags(turn->session, in->flags), fd = -1, failed;
    struct making making;
    struct ufs_node *node;
    struct stat status;

    failed = plan_making(turn, name, &making);
    if (failed)
        return failed;
    failed = become(turn, in->umask);
    if (!failed) {
        fd = ufs_open_beneath(making_in(turn, &making), making_at(&making),
                              (flags & ~O_TRUNC) | O_CREAT | O_EXCL, in->mode & 07777);
        failed = fd == -1 ? -errno : 0;
    }
    become_ourselves(turn);
    if (!failed)
        failed = adopt(turn, &making, name, false, &node, &status);
    if (failed) {
        if (fd != -1)
            close(fd);
        return failed;
    }
    ufs_tell(turn, node, &status);
    return ufs_tell_open(turn, node, fd, flags, false);
}

int ufs_on_tmpfile(struct ufs_turn *turn)
{
    const struct fuse_create_in *in = turn->argument;
    int flags = ufs_layer_flags(turn->session, in->flags) & ~O_TRUNC, fd = -1, failed;
    struct ufs_table *table = turn->table;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *parent, *node;
    struct stat status;

    failed = new_parent(turn, &parent);
    if (failed)
        return failed == UFS_FORWARD ? -EROFS : failed;
    path = ufs_upper_path(parent, NULL, buffer);
    if (!path)
        return -errno;
    failed = become(turn, in->umask);
    if (!failed) {
        fd = ufs_open_beneath(table->layers[0].fd, path, flags | O_TMPFILE, in->mode & 07777);
        failed = fd == -1 || fstat(fd, &status) ? -errno : 0;
    }
    become_ourselves(turn);
    node = failed ? NULL : new_upper_node(table, &status);
    if (!node) {
        if (fd != -1)
            close(fd);
        return failed ? failed : -ENOMEM;
    }
    ufs_tell(turn, node, &status);
    return ufs_tell_open(turn, node, fd, flags, false);
}

/* Give a file without a name one, as linkat(2) does for O_TMPFILE; other links are Python's. */
int ufs_on_link(struct ufs_turn *turn)
{
    const struct fuse_link_in *in = turn->argument;
    const char *name = (const char *)(in + 1);
    struct ufs_node *node = ufs_node(turn->table, in->oldnodeid);
    struct making making;
    struct stat status;
    char source[32];
    int failed;

    if (!node || !ufs_is_removed(node) || !node->open
        || turn->table->files[node->open->first].lower)
        return UFS_FORWARD;
    failed = ufs_refuse(turn, node, UFS_GUARDS);
    if (!failed)
        failed = plan_making(turn, name, &making);
    if (failed)
        return failed;
    snprintf(source, sizeof source, "/proc/self/fd/%d", node->open->first);
    if (linkat(AT_FDCWD, source, making_in(turn, &making), making_at(&making), AT_SYMLINK_FOLLOW))
        return -errno;
    failed = show(turn, &making, false);
    if (failed)
        return failed;
    ufs_forget_names_above(making.parent);
    if (ufs_bind(turn->table, node, making.parent, name))
        return -ENOMEM;
    failed = ufs_read_status(turn, node, &status);
    return failed ? failed : ufs_tell(turn, node, &status);
}
