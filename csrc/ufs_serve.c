#define _GNU_SOURCE
#include "ufs_serve.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_copyup.h"
#include "ufs_fileattr.h"
#include "ufs_listing.h"
#include "ufs_marks.h"

enum {
    UFS_DATA_SIZE = 1 << 20,         /* the most that is read or written by one request */
    UFS_REQUEST_SIZE = UFS_DATA_SIZE + 8192,
    UFS_FORWARDED_MAX = 1 << 17,     /* and the most that pyfuse3 is asked to */
    UFS_CACHED_MAX = 128 << 10,      /* larger files are worth their setting up of passthrough */
    UFS_COPY_MAX = 64 << 20,         /* bytes that one thread is busy copying */
    UFS_GIVEN_MAX = 32 << 10,        /* bytes of files that the kernel need not ask for */
    UFS_QUICK_MAX = 64 << 10,        /* bytes that are read or written while others wait */
    UFS_SPLICED_MAX = 512 << 10,     /* bytes of a file whose pages find room in a pipe */
    UFS_PIPE_SIZE = 1 << 20,
    UFS_SETTLED = 10,                /* seconds in which whoever reads a directory has got what we sent */
    UFS_FORWARD = 1,                 /* instead of a negative errno: pyfuse3 shall answer */
    UFS_SILENT = 2,                  /* the kernel waits for no reply */
};

/* In a file handle, which is a descriptor otherwise: the rest is the node's ID. */
static const uint64_t UFS_IDLE = (uint64_t)1 << 63;

/* linux/fuse.h since Linux 6.9 */
enum { UFS_FOPEN_NOFLUSH = 1 << 5, UFS_FOPEN_PASSTHROUGH = 1 << 7 };
struct ufs_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define UFS_BACKING_OPEN _IOW(229, 1, struct ufs_backing_map)
#define UFS_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* linux/fuse.h since Linux 6.6 */
enum { UFS_FUSE_STATX = 52 };
struct ufs_statx_in {
    uint32_t getattr_flags, reserved;
    uint64_t handle;
    uint32_t flags, mask;
};
struct ufs_statx_out {
    uint64_t valid;
    uint32_t valid_nsec, flags;
    uint64_t spare[2];
    struct statx status; /* so far as struct fuse_statx goes, they are alike */
};

/* The flags that concern a layer's file; the kernel has others of its own. */
static const int LAYER_FLAGS =
    O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC | O_NONBLOCK | O_NOFOLLOW;

struct ufs_pending {
    struct ufs_pending *next;
    size_t size;
    struct fuse_in_header request; /* with what follows it */
};

/* What a thread answers with. pipe: -1 where it has none. */
struct desk {
    char *request, *reply;
    int pipe[2];
};

/* One request and its reply. */
struct turn {
    struct ufs_session *session;
    struct ufs_table *table;
    const struct fuse_in_header *in;
    const void *argument; /* after the header */
    char *reply;
    size_t length; /* of the reply */
    uint64_t invalid; /* a node that the kernel has to ask about again, or 0 */
    bool names;       /* about the names in it too */
    const int *pipe;  /* empty, of this thread */
    bool leads;       /* this thread holds session->leading */
};

/* Replies. */

static void send_reply(const struct ufs_session *session, uint64_t unique, int error,
                       const void *payload, size_t length)
{
    struct fuse_out_header out = {
        .len = (uint32_t)(sizeof out + length), .error = error, .unique = unique
    };
    struct iovec parts[] = { { &out, sizeof out }, { (void *)(uintptr_t)payload, length } };
    ssize_t written = writev(session->device, parts, length ? 2 : 1);

    (void)written; /* ENOENT: who asked has been interrupted; ENODEV: unmounted */
}

void ufs_invalidate(const struct ufs_session *session, uint64_t id, bool contents)
{
    struct {
        struct fuse_out_header head;
        struct fuse_notify_inval_inode_out body;
    } note = {
        .head = { .len = sizeof note, .error = FUSE_NOTIFY_INVAL_INODE },
        .body = { .ino = id, .off = contents ? 0 : -1 },
    };
    ssize_t written = write(session->device, &note, sizeof note);

    (void)written; /* ENOENT: the kernel has forgotten it */
}

static void *room(struct turn *turn, size_t size)
{
    void *place = turn->reply + turn->length;

    memset(place, 0, size);
    turn->length += size;
    return place;
}

/* As new_encode_dev, linux/kdev_t.h. */
static uint32_t encoded_device(dev_t device)
{
    uint32_t low = minor(device);

    return (low & 0xff) | major(device) << 8 | (low & ~0xffu) << 12;
}

static dev_t decoded_device(uint32_t device)
{
    return makedev((device & 0xfff00) >> 8, (device & 0xff) | (device >> 12 & ~0xffu));
}

/* Let the kernel know of owners without a number: it refuses to change the file. */
static void unmap(const struct turn *turn, const struct ufs_node *node, const struct stat *status,
                  struct fuse_attr *attr)
{
    char buffer[UFS_PATH_SIZE], *path;
    int fd;

    path = ufs_locate(turn->table, node, &fd, buffer);
    if (!path || !ufs_is_unmapped(fd, path, status))
        return;
    if (attr->uid == UFS_OVERFLOW_ID)
        attr->uid = (uint32_t)-1;
    if (attr->gid == UFS_OVERFLOW_ID)
        attr->gid = (uint32_t)-1;
}

static void fill_attributes(const struct turn *turn, const struct ufs_node *node,
                            const struct stat *status, struct fuse_attr *attr)
{
    *attr = (struct fuse_attr){
        .ino = node->number,
        .size = (uint64_t)status->st_size,
        .blocks = (uint64_t)status->st_blocks,
        .atime = (uint64_t)status->st_atim.tv_sec,
        .mtime = (uint64_t)status->st_mtim.tv_sec,
        .ctime = (uint64_t)status->st_ctim.tv_sec,
        .atimensec = (uint32_t)status->st_atim.tv_nsec,
        .mtimensec = (uint32_t)status->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)status->st_ctim.tv_nsec,
        .mode = status->st_mode,
        .nlink = node->type == DT_DIR && ufs_is_merged(node) ? 1 : (uint32_t)status->st_nlink,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .rdev = encoded_device(status->st_rdev),
        .blksize = (uint32_t)status->st_blksize,
    };
    if (turn->table->idmapped)
        unmap(turn, node, status, attr);
}

/* The status of a node's file: 0 or -errno. */
static int read_status(const struct turn *turn, const struct ufs_node *node, struct stat *status)
{
    char buffer[UFS_PATH_SIZE], *path;
    const struct ufs_file *file;
    int fd;

    path = ufs_locate(turn->table, node, &fd, buffer);
    if (path && !fstatat(fd, path, status, AT_SYMLINK_NOFOLLOW))
        return 0;
    if (errno != ENOENT)
        return -errno;
    if (node->open && node->open->first != -1) {
        file = &turn->table->files[node->open->first];
        if (fstat(node->open->first, status))
            return -errno;
        if (file->lower && status->st_nlink)
            status->st_nlink--;
        return 0;
    }
    if (!node->last)
        return ufs_is_removed(node) ? -ESTALE : -ENOENT;
    *status = *node->last;
    return 0;
}

static void fill_entry(struct turn *turn, struct ufs_node *node, const struct stat *status,
                       struct fuse_entry_out *entry)
{
    const struct ufs_session *session = turn->session;

    entry->nodeid = node->id;
    entry->entry_valid = entry->attr_valid = session->seconds;
    entry->entry_valid_nsec = entry->attr_valid_nsec = session->nanoseconds;
    fill_attributes(turn, node, status, &entry->attr);
    node->lookups++;
}

/* The reply that makes a node known to the kernel. */
static int tell(struct turn *turn, struct ufs_node *node, const struct stat *status)
{
    fill_entry(turn, node, status, room(turn, sizeof(struct fuse_entry_out)));
    return 0;
}

static int told_attributes(struct turn *turn, const struct ufs_node *node)
{
    struct fuse_attr_out *out = room(turn, sizeof *out);
    struct stat status;
    int failed = read_status(turn, node, &status);

    if (failed)
        return failed;
    out->attr_valid = turn->session->seconds;
    out->attr_valid_nsec = turn->session->nanoseconds;
    fill_attributes(turn, node, &status, &out->attr);
    return 0;
}

/* Look a node up again whose places have changed. */
static int refresh(const struct turn *turn, struct ufs_node *node)
{
    struct ufs_node *found;
    struct stat status;
    bool filled;
    int failed;

    if (!(node->flags & UFS_STALE) || !node->names)
        return 0;
    failed = refresh(turn, node->names->parent);
    if (failed)
        return failed;
    failed = ufs_find(turn->table, &turn->session->asked, node->names->parent, node->names->text,
                      &found, &status, &filled);
    return failed < 0 ? failed : failed == UFS_FOUND ? 0 : -ESTALE;
}

static int at_node(const struct turn *turn, struct ufs_node **node)
{
    *node = ufs_node(turn->table, turn->in->nodeid);
    return *node ? refresh(turn, *node) : -ESTALE;
}

/* 0, or -EPERM where a node has one of the flags, FS_IMMUTABLE_FL and FS_APPEND_FL. */
static int refuse(const struct turn *turn, struct ufs_node *node, unsigned flags)
{
    int failed = refresh(turn, node);

    return failed ? failed : ufs_guards(turn->table, node) & flags ? -EPERM : 0;
}

enum { UFS_GUARDS = FS_IMMUTABLE_FL | FS_APPEND_FL };

static int refuse_removal(const struct turn *turn, struct ufs_node *parent, struct ufs_node *node)
{
    int failed = refuse(turn, parent, UFS_GUARDS);

    return failed ? failed : refuse(turn, node, UFS_GUARDS);
}

/* Names. */

/* Whether nothing but an entry of a directory has the name: what else there could be leads out of
 * the layer, and no kernel asks for it. */
static bool is_entry(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

/* As at_node, of a directory: below another file a path would go on elsewhere. */
static int at_directory(const struct turn *turn, struct ufs_node **directory)
{
    int failed = at_node(turn, directory);

    return failed ? failed : (*directory)->type == DT_DIR ? 0 : -ENOTDIR;
}

static int on_lookup(struct turn *turn)
{
    struct ufs_node *parent, *node;
    struct fuse_entry_out *absent;
    struct stat status;
    bool filled;
    int found = at_directory(turn, &parent);

    if (found)
        return found;
    found = ufs_find(turn->table, &turn->session->asked, parent, turn->argument, &node, &status,
                     &filled);
    if (found == UFS_ABSENT) {
        absent = room(turn, sizeof *absent);
        absent->entry_valid = turn->session->seconds;
        absent->entry_valid_nsec = turn->session->nanoseconds;
        return 0;
    }
    if (found == UFS_FOUND && !filled)
        found = read_status(turn, node, &status);
    return found < 0 ? found : tell(turn, node, &status);
}

static int on_forget(struct turn *turn)
{
    const struct fuse_forget_in *forget = turn->argument;
    struct ufs_node *node = ufs_node(turn->table, turn->in->nodeid);

    if (node)
        ufs_forget(turn->table, node, forget->nlookup);
    return UFS_SILENT;
}

static int on_batch_forget(struct turn *turn)
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

static int on_getattr(struct turn *turn)
{
    struct ufs_node *node;
    int failed = at_node(turn, &node);

    return failed ? failed : told_attributes(turn, node);
}

/* When the file that answers for a node was made, where its filesystem tells. */
static void add_birth(const struct turn *turn, const struct ufs_node *node, struct statx *status)
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
static int on_statx(struct turn *turn)
{
    struct ufs_statx_out *out = room(turn, sizeof *out);
    struct fuse_attr attr;
    struct ufs_node *node;
    struct stat status;
    int failed = at_node(turn, &node);

    if (!failed)
        failed = read_status(turn, node, &status);
    if (failed)
        return failed;
    fill_attributes(turn, node, &status, &attr);
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

static int on_readlink(struct turn *turn)
{
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    ssize_t length;
    int fd, failed = at_node(turn, &node);

    if (failed)
        return failed;
    path = ufs_locate(turn->table, node, &fd, buffer);
    length = path ? readlinkat(fd, path, turn->reply, UFS_PATH_SIZE) : -1;
    if (length == -1)
        return -errno;
    turn->length = (size_t)length;
    return 0;
}

/* New names. */

static bool is_for_python(const char *name)
{
    return !strncmp(name, UFS_AUFS_PREFIX, sizeof UFS_AUFS_PREFIX - 1)
           || strlen(name) >= UFS_NAME_SIZE;
}

/* Before something that may take long: let another thread wait for requests. */
static void step_aside(struct turn *turn)
{
    if (turn->leads)
        pthread_mutex_unlock(&turn->session->leading);
    turn->leads = false;
}

/* Say that files in a directory of upper may come from below: 0, or what to return. */
static int note_impure(const struct turn *turn, struct ufs_node *directory)
{
    if (directory->flags & UFS_IMPURE)
        return 0;
    /* What Python knows of it is not ours to change. */
    return directory->flags & UFS_PINNED ? UFS_FORWARD : ufs_set_impure(turn->table, directory);
}

/* Make upper hold a directory whose parent it holds: 0, or what to return. Keeps the lock: it is
 * quick, and others may be about to look names up in it. */
static int copy_up_directory(const struct turn *turn, struct ufs_node *directory)
{
    const struct ufs_asked *asked = &turn->session->asked;
    struct ufs_table *table = turn->table;
    struct ufs_copy copy;
    int planned = directory->flags & UFS_PINNED ? 0 : ufs_plan_copy(table, directory, &copy), failed;

    if (planned < 0)
        return planned;
    failed = planned ? note_impure(turn, directory->names->parent) : UFS_FORWARD;
    if (failed == UFS_FORWARD) {
        failed = asked->copy_up(asked->context, directory->id);
        return failed || directory->flags & UFS_UPPER ? failed : UFS_FORWARD;
    }
    if (!failed)
        failed = ufs_build_copy(table, &copy, 0, turn->reply);
    if (!failed)
        failed = ufs_install_copy(table, directory, &copy);
    ufs_invalidate(turn->session, directory->id, false);
    return failed;
}

/* Make upper hold the directories that a node lies in: 0, or what to return. */
static int copy_up_parents(const struct turn *turn, const struct ufs_node *node)
{
    struct ufs_node *directory;
    int failed = 0;

    while (!failed && node->names && !(node->names->parent->flags & UFS_UPPER)) {
        directory = node->names->parent;
        while (directory->names && !(directory->names->parent->flags & UFS_UPPER))
            directory = directory->names->parent;
        failed = copy_up_directory(turn, directory);
    }
    return failed;
}

/* Make upper hold a node and what it lies in: 0, or what to return. Lets go of the lock while it
 * copies a file. size: how many bytes of its data are wanted. */
static int copy_up(struct turn *turn, struct ufs_node *node, uint64_t size)
{
    struct ufs_table *table = turn->table;
    struct ufs_copy copy;
    int planned, failed;

    while (node->flags & UFS_COPYING) {
        step_aside(turn);
        pthread_cond_wait(&table->copied, &table->lock);
    }
    if (node->flags & UFS_UPPER)
        return 0;
    if (!table->has_upper || table->work == -1)
        return UFS_FORWARD; /* it knows the error */
    failed = copy_up_parents(turn, node);
    if (failed)
        return failed;
    if (node->type == DT_DIR)
        return copy_up_directory(turn, node);
    planned = node->flags & UFS_PINNED ? 0 : ufs_plan_copy(table, node, &copy);
    if (planned < 1)
        return planned ? planned : UFS_FORWARD;
    failed = note_impure(turn, node->names->parent);
    if (failed)
        return failed;
    node->flags |= UFS_COPYING;
    step_aside(turn);
    pthread_mutex_unlock(&table->lock);
    failed = ufs_build_copy(table, &copy, size, turn->reply);
    pthread_mutex_lock(&table->lock);
    if (!failed)
        failed = ufs_install_copy(table, node, &copy);
    node->flags &= (uint16_t)~UFS_COPYING;
    pthread_cond_broadcast(&table->copied);
    turn->invalid = node->id; /* its change time */
    return failed;
}

/* The directory that shall get a name, in upper: 0, or what to return. */
static int new_parent(struct turn *turn, struct ufs_node **parent)
{
    int failed = at_directory(turn, parent);

    if (!failed)
        failed = ufs_is_removed(*parent) ? -ENOENT : refuse(turn, *parent, FS_IMMUTABLE_FL);
    return failed ? failed : copy_up(turn, *parent, 0);
}

/* Where a new file is made: at its name or, over a whiteout, first in work. */
struct making {
    struct ufs_node *parent;
    char *path, buffer[UFS_PATH_SIZE]; /* in upper */
    char draft[UFS_DRAFT_SIZE];        /* "": made in upper at once */
};

/* Whether files made in work become what they would become in a directory of upper, which may pass
 * on its group and its default access control list. */
static bool passes_nothing_on(const struct turn *turn, const struct ufs_node *directory)
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
static int plan_making(struct turn *turn, const char *name, struct making *making)
{
    struct ufs_table *table = turn->table;
    struct stat status;
    int failed, below;

    if (is_for_python(name))
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

static int making_in(const struct turn *turn, const struct making *making)
{
    return *making->draft ? turn->table->work : turn->table->layers[0].fd;
}

static const char *making_at(const struct making *making)
{
    return *making->draft ? making->draft : making->path;
}

/* Show what was made: 0 or -errno. */
static int show(const struct turn *turn, const struct making *making, bool directory)
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

static bool is_ourselves(const struct fuse_in_header *in)
{
    return in->uid == geteuid() && in->gid == getegid();
}

/* Make files as the caller, until become_ourselves; as Operations._creating. */
static int become(const struct turn *turn, uint32_t mask)
{
    const struct fuse_in_header *in = turn->in;

    umask(mask);
    if (is_ourselves(in))
        return 0;
    setfsgid(in->gid);
    setfsuid(in->uid);
    if ((uint32_t)setfsgid(-1) == in->gid && (uint32_t)setfsuid(-1) == in->uid)
        return 0;
    return -EPERM;
}

static void become_ourselves(const struct turn *turn)
{
    if (!is_ourselves(turn->in)) {
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
static int adopt(struct turn *turn, const struct making *making, const char *name, bool directory,
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

static int make_node(struct turn *turn, const char *name, mode_t mode, dev_t device,
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
    return tell(turn, node, &status);
}

static int on_mknod(struct turn *turn)
{
    const struct fuse_mknod_in *in = turn->argument;

    if (S_ISCHR(in->mode) && !in->rdev)
        return UFS_FORWARD;
    return make_node(turn, (const char *)(in + 1), in->mode, decoded_device(in->rdev),
                     in->umask, NULL);
}

static int on_mkdir(struct turn *turn)
{
    const struct fuse_mkdir_in *in = turn->argument;

    return make_node(turn, (const char *)(in + 1), S_IFDIR | (in->mode & 07777), 0, in->umask, NULL);
}

static int on_symlink(struct turn *turn)
{
    const char *name = turn->argument, *target = name + strlen(name) + 1;

    return make_node(turn, name, S_IFLNK, 0, 0, target);
}

/* Open files. */

static int layer_flags(const struct ufs_session *session, uint32_t flags)
{
    int kept = (int)flags & LAYER_FLAGS;

    /* With its writeback cache the kernel reads what it writes in part, and appends by itself. */
    if (session->writeback && (kept & O_ACCMODE) != O_RDONLY)
        kept = (kept & ~(O_ACCMODE | O_APPEND)) | O_RDWR;
    return kept;
}

/* Whether reads and writes of a file just opened go to the layer's file without us. A file of a
 * lower layer may be copied up while it is open, which only we could follow. */
static bool wants_passthrough(const struct ufs_session *session, const struct ufs_node *node,
                              int fd, int flags, bool lower)
{
    struct stat status;

    if (!session->passthrough)
        return false;
    if (node->open)
        return node->open->backing != 0;
    if (lower && session->table.has_upper)
        return false;
    return (flags & O_ACCMODE) != O_RDONLY || fstat(fd, &status)
           || status.st_size > UFS_CACHED_MAX;
}

int ufs_keep_open(struct ufs_session *session, struct ufs_node *node, int fd, int flags,
                  bool lower)
{
    struct ufs_backing_map map = { .fd = fd };
    bool passes = node->type == DT_REG && wants_passthrough(session, node, fd, flags, lower);
    int backing = 0;

    if (passes && node->open)
        backing = node->open->backing;
    else if (passes)
        backing = ioctl(session->device, UFS_BACKING_OPEN, &map);
    if (ufs_opened(&session->table, node, fd, flags & ~O_TRUNC, lower))
        return -1;
    /* Refused, as where a layer lies on a stacked filesystem: then by us. */
    node->open->backing = backing > 0 ? backing : 0;
    return 0;
}

static void fill_open(const struct ufs_node *node, int fd, struct fuse_open_out *out)
{
    out->fh = (uint64_t)fd;
    out->open_flags = UFS_FOPEN_NOFLUSH;
    out->open_flags |= node->open->backing ? (uint32_t)UFS_FOPEN_PASSTHROUGH : FOPEN_KEEP_CACHE;
    out->padding = (uint32_t)node->open->backing; /* backing_id, since Linux 6.9 */
}

static int tell_open(struct turn *turn, struct ufs_node *node, int fd, int flags, bool lower)
{
    if (ufs_keep_open(turn->session, node, fd, flags, lower)) {
        close(fd);
        return -ENOMEM;
    }
    fill_open(node, fd, room(turn, sizeof(struct fuse_open_out)));
    return 0;
}

/* What the kernel leaves to us where it drops set-id bits by itself otherwise. */
static void drop_set_id(struct turn *turn, int fd)
{
    struct stat status;
    mode_t kept;

    if (!turn->in->uid || fstat(fd, &status))
        return;
    kept = status.st_mode & ~(mode_t)S_ISUID;
    if (status.st_mode & S_IXGRP)
        kept &= ~(mode_t)S_ISGID;
    if (kept != status.st_mode && !fchmod(fd, kept & 07777))
        turn->invalid = turn->in->nodeid;
}

/* Whether a file need not be opened before the kernel asks for what it has not in its cache: it lies
 * in a lower layer, and nobody could refuse us. */
static bool may_be_idle(const struct ufs_session *session, const struct ufs_node *node)
{
    return session->passthrough && session->table.has_upper && node->type == DT_REG
           && !(node->flags & (UFS_UPPER | UFS_BUSY)) && !(node->open && node->open->backing);
}

/* Give the kernel the data of a small file that is opened for the first time, if that is at hand:
 * it is spared a request for it. */
static void give_data(struct turn *turn, struct ufs_node *node)
{
    struct {
        struct fuse_out_header head;
        struct fuse_notify_store_out body;
    } note = { .head.error = FUSE_NOTIFY_STORE, .body.nodeid = node->id };
    char *data = turn->reply + turn->length;
    struct iovec part = { data, UFS_GIVEN_MAX + 1 };
    struct iovec parts[] = { { &note, sizeof note }, { data, 0 } };
    int fd = ufs_wake_idle(turn->table, node);
    ssize_t length = fd == -1 ? -1 : preadv2(fd, &part, 1, 0, RWF_NOWAIT);

    node->flags |= UFS_GIVEN;
    if (length <= 0 || length > UFS_GIVEN_MAX)
        return;
    note.head.len = (uint32_t)(sizeof note + (size_t)length);
    note.body.size = (uint32_t)length;
    parts[1].iov_len = (size_t)length;
    length = writev(turn->session->device, parts, 2);
    (void)length; /* the kernel will ask then */
}

static int open_idle(struct turn *turn, struct ufs_node *node)
{
    struct fuse_open_out *out = room(turn, sizeof *out);

    if (ufs_open_idle(node))
        return -ENOMEM;
    if (!(node->flags & UFS_GIVEN))
        give_data(turn, node);
    out->fh = UFS_IDLE | node->id;
    out->open_flags = UFS_FOPEN_NOFLUSH | FOPEN_KEEP_CACHE;
    return 0;
}

/* The descriptor of a file handle; -1 with errno. */
static int descriptor(const struct turn *turn, uint64_t handle)
{
    struct ufs_node *node;
    int fd;

    if (!(handle & UFS_IDLE))
        return (int)handle;
    pthread_mutex_lock(&turn->table->lock);
    node = ufs_node(turn->table, handle & ~UFS_IDLE);
    errno = EBADF;
    fd = node && node->open && node->open->idle ? ufs_wake_idle(turn->table, node) : -1;
    pthread_mutex_unlock(&turn->table->lock);
    return fd;
}

/* Whether a file may not be opened so: 0 or -EPERM. */
static int refuse_opening(const struct turn *turn, struct ufs_node *node, uint32_t flags)
{
    bool writes = (flags & O_ACCMODE) != O_RDONLY, appends = flags & O_APPEND && !(flags & O_TRUNC);

    if (node->type != DT_REG || !(writes || flags & O_TRUNC))
        return 0;
    return refuse(turn, node, writes && appends ? FS_IMMUTABLE_FL : UFS_GUARDS);
}

static int on_open(struct turn *turn)
{
    const struct fuse_open_in *in = turn->argument;
    int flags = layer_flags(turn->session, in->flags), fd, layer, failed;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    bool lower;

    failed = at_node(turn, &node);
    if (!failed)
        failed = refuse_opening(turn, node, in->flags);
    if (failed)
        return failed;
    if (node->type != DT_REG)
        return -EINVAL; /* directories are opened without us, and the rest by the kernel alone */
    lower = !(node->flags & UFS_UPPER);
    if (ufs_is_removed(node)) {
        if (!node->open || node->open->first == -1)
            return -ESTALE;
        lower = turn->table->files[node->open->first].lower;
        snprintf(buffer, sizeof buffer, "/proc/self/fd/%d", node->open->first);
        fd = open(buffer, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
    } else {
        if (lower && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC)) {
            failed = copy_up(turn, node, flags & O_TRUNC ? 0 : UINT64_MAX);
            if (failed)
                return failed;
            lower = false;
        }
        if (lower && may_be_idle(turn->session, node))
            return open_idle(turn, node);
        path = ufs_locate(turn->table, node, &layer, buffer);
        if (!path)
            return -errno;
        fd = ufs_open_beneath(layer, path, flags, 0);
    }
    if (fd == -1)
        return -errno;
    if (flags & O_TRUNC)
        drop_set_id(turn, fd);
    return tell_open(turn, node, fd, flags, lower);
}

static int on_create(struct turn *turn)
{
    const struct fuse_create_in *in = turn->argument;
    const char *name = (const char *)(in + 1);
    int flags = layer_flags(turn->session, in->flags), fd = -1, failed;
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
    tell(turn, node, &status);
    return tell_open(turn, node, fd, flags, false);
}

static int on_tmpfile(struct turn *turn)
{
    const struct fuse_create_in *in = turn->argument;
    int flags = layer_flags(turn->session, in->flags) & ~O_TRUNC, fd = -1, failed;
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
    tell(turn, node, &status);
    return tell_open(turn, node, fd, flags, false);
}

/* Give a file without a name one, as linkat(2) does for O_TMPFILE; other links are Python's. */
static int on_link(struct turn *turn)
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
    failed = refuse(turn, node, UFS_GUARDS);
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
    failed = read_status(turn, node, &status);
    return failed ? failed : tell(turn, node, &status);
}

/* Keep the status of a node that is about to lose its last name. links: what it has left. */
static void keep_last(struct ufs_node *node, const struct stat *status, nlink_t links)
{
    free(node->last);
    node->last = malloc(sizeof *node->last);
    if (!node->last)
        return;
    *node->last = *status;
    node->last->st_nlink = links;
}

static void keep_last_of_open(const struct turn *turn, struct ufs_node *node)
{
    struct stat status;

    if (ufs_is_removed(node) && !read_status(turn, node, &status))
        keep_last(node, &status, status.st_nlink);
}

static int on_release(struct turn *turn)
{
    const struct fuse_release_in *in = turn->argument;
    struct ufs_table *table = turn->table;
    struct ufs_node *node;
    int fd = (int)in->fh, backing;

    if (in->fh & UFS_IDLE) {
        node = ufs_node(table, in->fh & ~UFS_IDLE);
        if (!node || !node->open || !node->open->idle)
            return -EBADF;
        keep_last_of_open(turn, node);
        ufs_close_idle(table, node);
        return 0;
    }
    if (fd < 0 || fd >= table->file_room || !table->files[fd].node)
        return -EBADF;
    node = table->files[fd].node;
    backing = node->open->backing;
    keep_last_of_open(turn, node);
    if (backing && node->open->first == fd && table->files[fd].next == -1)
        ioctl(turn->session->device, UFS_BACKING_CLOSE, &backing);
    ufs_closed(table, fd);
    return 0;
}

/* These need no lock: while the kernel uses a descriptor, it does not release it. */

/* Reply with a file's pages as they are, which are copied but once then: whether that was done. Not
 * where there are fewer bytes than asked for. */
static bool splice_reply(const struct turn *turn, int fd, const struct fuse_read_in *in)
{
    struct fuse_out_header out = {
        .len = (uint32_t)sizeof out + in->size, .unique = turn->in->unique
    };
    loff_t offset = (loff_t)in->offset;
    ssize_t length, done = 0;

    if (in->size <= UFS_QUICK_MAX || in->size > UFS_SPLICED_MAX || turn->pipe[0] == -1
        || write(turn->pipe[1], &out, sizeof out) != sizeof out)
        return false;
    do {
        length = splice(fd, &offset, turn->pipe[1], NULL, in->size - (size_t)done, 0);
        done += length;
    } while (length > 0 && done < (ssize_t)in->size);
    if (length > 0 && splice(turn->pipe[0], NULL, turn->session->device, NULL, out.len, 0) > 0)
        return true;
    while (read(turn->pipe[0], turn->reply, UFS_DATA_SIZE) > 0)
        continue;
    return false;
}

static int on_read(struct turn *turn)
{
    const struct fuse_read_in *in = turn->argument;
    size_t size = in->size < UFS_DATA_SIZE ? in->size : UFS_DATA_SIZE;
    struct iovec part = { turn->reply, size };
    int fd = descriptor(turn, in->fh);
    ssize_t length = -1;

    if (fd == -1)
        return -errno;
    if (size <= UFS_QUICK_MAX)
        length = preadv2(fd, &part, 1, (off_t)in->offset, RWF_NOWAIT);
    if (length != (ssize_t)size) { /* the rest is on disk, or there is none */
        step_aside(turn);
        if (splice_reply(turn, fd, in))
            return UFS_SILENT;
        length = pread(fd, turn->reply, size, (off_t)in->offset);
    }
    if (length == -1)
        return -errno;
    turn->length = (size_t)length;
    return 0;
}

/* As pwrite(2); but of pages that the kernel kept, all or an error: it forgets what a short answer
 * leaves out, and the program would never hear of a full disk. */
static ssize_t write_data(const struct fuse_write_in *in)
{
    const char *data = (const char *)(in + 1);
    size_t done = 0;

    do {
        ssize_t length = pwrite((int)in->fh, data + done, in->size - done,
                                (off_t)(in->offset + done));

        if (length == -1)
            return done && !(in->write_flags & FUSE_WRITE_CACHE) ? (ssize_t)done : -1;
        done += (size_t)length;
    } while (done < in->size);
    return (ssize_t)done;
}

static int on_write(struct turn *turn)
{
    const struct fuse_write_in *in = turn->argument;
    struct fuse_write_out *out = room(turn, sizeof *out);
    ssize_t length;

    if (in->fh & UFS_IDLE)
        return -EBADF; /* that is open for reading */
    if (in->size > UFS_QUICK_MAX)
        step_aside(turn);
    length = write_data(in);
    if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
        drop_set_id(turn, (int)in->fh);
    if (length == -1)
        return -errno;
    out->size = (uint32_t)length;
    return 0;
}

static int on_fsync(struct turn *turn)
{
    const struct fuse_fsync_in *in = turn->argument;
    int fd = (int)in->fh;

    if (in->fh & UFS_IDLE || !turn->session->syncs)
        return 0;
    step_aside(turn);
    return (in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd)) ? -errno : 0;
}

static int on_lseek(struct turn *turn)
{
    const struct fuse_lseek_in *in = turn->argument;
    struct fuse_lseek_out *out = room(turn, sizeof *out);
    int fd = descriptor(turn, in->fh);
    off_t offset = fd == -1 ? -1 : lseek(fd, (off_t)in->offset, (int)in->whence);

    if (offset == -1)
        return -errno;
    out->offset = (uint64_t)offset;
    return 0;
}

static int on_fallocate(struct turn *turn)
{
    const struct fuse_fallocate_in *in = turn->argument;

    if (in->fh & UFS_IDLE)
        return -EBADF;
    step_aside(turn);
    if (fallocate((int)in->fh, (int)in->mode, (off_t)in->offset, (off_t)in->length))
        return -errno;
    drop_set_id(turn, (int)in->fh);
    return 0;
}

static int on_copy_file_range(struct turn *turn)
{
    const struct fuse_copy_file_range_in *in = turn->argument;
    struct fuse_write_out *out = room(turn, sizeof *out);
    off_t from = (off_t)in->off_in, to = (off_t)in->off_out;
    size_t size = in->len < UFS_COPY_MAX ? in->len : UFS_COPY_MAX;
    int fd = descriptor(turn, in->fh_in);
    ssize_t length;

    if (fd == -1 || in->fh_out & UFS_IDLE)
        return fd == -1 ? -errno : -EBADF;
    step_aside(turn);
    length = copy_file_range(fd, &from, (int)in->fh_out, &to, size, 0);
    if (length == -1)
        return -errno;
    drop_set_id(turn, (int)in->fh_out);
    out->size = (uint32_t)length;
    return 0;
}

/* Attributes. */

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

static int set_size(struct turn *turn, const struct fuse_setattr_in *in, int layer,
                    const char *path)
{
    int fd = ufs_open_beneath(layer, path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK, 0), failed;

    if (fd == -1)
        return -1;
    failed = ftruncate(fd, (off_t)in->size);
    if (!failed && in->valid & FATTR_KILL_SUIDGID)
        drop_set_id(turn, fd);
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
    if (in->valid & FATTR_SIZE)
        return in->valid & FATTR_FH ? FS_APPEND_FL : UFS_GUARDS; /* FH: who was let open it */
    return touched || appended ? FS_IMMUTABLE_FL : UFS_GUARDS;
}

static int on_setattr(struct turn *turn)
{
    const struct fuse_setattr_in *in = turn->argument;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    int fd, failed = at_node(turn, &node);

    if (failed)
        return failed;
    if (!(in->valid
          & (FATTR_SIZE | FATTR_UID | FATTR_GID | FATTR_MODE | FATTR_ATIME | FATTR_MTIME)))
        return told_attributes(turn, node); /* a change time alone, which the layer keeps */
    if (ufs_is_removed(node)) /* nobody has it: times that the kernel kept for its last write */
        return node->open ? UFS_FORWARD : -ESTALE;
    failed = refuse(turn, node, refused(turn->session, in));
    if (!failed)
        failed = copy_up(turn, node, in->valid & FATTR_SIZE ? in->size : UINT64_MAX);
    if (failed)
        return failed;
    path = ufs_locate(turn->table, node, &fd, buffer);
    if (!path)
        return -errno;
    if (in->valid & FATTR_SIZE && set_size(turn, in, fd, path))
        return -errno;
    if (in->valid & (FATTR_UID | FATTR_GID)
        && fchownat(fd, path, in->valid & FATTR_UID ? in->uid : (uid_t)-1,
                    in->valid & FATTR_GID ? in->gid : (gid_t)-1, AT_SYMLINK_NOFOLLOW))
        return -errno;
    if (in->valid & FATTR_MODE && node->type == DT_LNK)
        return -EOPNOTSUPP;
    if (in->valid & FATTR_MODE && fchmodat(fd, path, in->mode & 07777, 0))
        return -errno;
    if (in->valid & (FATTR_ATIME | FATTR_MTIME) && set_times(in, fd, path))
        return -errno;
    return told_attributes(turn, node);
}

static int on_getxattr(struct turn *turn)
{
    const struct fuse_getxattr_in *in = turn->argument;
    const char *name = (const char *)(in + 1);
    char buffer[UFS_PATH_SIZE], *path;
    struct fuse_getxattr_out *out;
    struct ufs_node *node;
    ssize_t length;
    int fd, failed = at_node(turn, &node);

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
        out = room(turn, sizeof *out);
        out->size = (uint32_t)length;
    }
    return 0;
}

static int on_listxattr(struct turn *turn)
{
    const struct fuse_getxattr_in *in = turn->argument;
    char buffer[UFS_PATH_SIZE], *path, *name, *next;
    struct fuse_getxattr_out *out;
    struct ufs_node *node;
    ssize_t length;
    size_t kept = 0, size;
    int fd, failed = at_node(turn, &node);

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
        out = room(turn, sizeof *out);
        out->size = (uint32_t)kept;
    }
    return 0;
}

/* What chattr(1) and lsattr(1) ask for. */
static int on_ioctl(struct turn *turn)
{
    const struct fuse_ioctl_in *in = turn->argument;
    const struct ufs_asked *asked = &turn->session->asked;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    int layer, fd, failed;

    if (!ufs_is_fileattr(in->cmd))
        return -ENOTTY; /* as isatty(3) wants it */
    failed = at_node(turn, &node);
    if (!failed && ufs_sets_fileattr(in->cmd) && !ufs_is_removed(node)) {
        failed = copy_up(turn, node, UINT64_MAX);
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
    room(turn, sizeof(struct fuse_ioctl_out));
    failed = ufs_fileattr(turn->table, node, fd, in->cmd, in + 1, in->in_size,
                          turn->reply + turn->length);
    close(fd);
    if (failed < 0)
        return failed;
    turn->length += (size_t)failed;
    return 0;
}

/* Names removed and moved. */

/* A node of upper alone at a name of a directory of upper: 0, or what to return. status: its. */
static int plain(struct turn *turn, struct ufs_node *parent, const char *name,
                 struct ufs_node **node, char buffer[UFS_PATH_SIZE], char **path,
                 struct stat *status)
{
    bool filled;
    int found;

    if (!(parent->flags & UFS_UPPER) || ufs_is_removed(parent) || is_for_python(name))
        return UFS_FORWARD;
    found = ufs_find(turn->table, &turn->session->asked, parent, name, node, status, &filled);
    if (found != UFS_FOUND)
        return found < 0 ? found : -ENOENT;
    if (!((*node)->flags & UFS_UPPER) || (*node)->flags & UFS_BUSY || (*node)->lower_count)
        return UFS_FORWARD;
    *path = ufs_upper_path(parent, name, buffer);
    if (!*path || fstatat(turn->table->layers[0].fd, *path, status, AT_SYMLINK_NOFOLLOW))
        return -errno;
    return status->st_nlink > 1 && !S_ISDIR(status->st_mode) ? UFS_FORWARD : 0;
}

/* Before a node may lose its last name: 0, or -1 with errno. */
static int keep_idle(const struct turn *turn, struct ufs_node *node)
{
    return node->open && node->open->idle && ufs_wake_idle(turn->table, node) == -1 ? -1 : 0;
}

/* Hide a file of lower layers alone: there is nothing in upper, so its whiteout is made there. */
static int cover(struct turn *turn, struct ufs_node *parent, struct ufs_node *node,
                 const char *name)
{
    char buffer[UFS_PATH_SIZE], *path = ufs_upper_path(parent, name, buffer);
    struct stat status;
    int failed;

    failed = path ? read_status(turn, node, &status) : -errno;
    if (failed)
        return failed;
    if (keep_idle(turn, node))
        return -errno;
    /* What is there, or where nobody may make devices: for Python. */
    if (mknodat(turn->table->layers[0].fd, path, S_IFCHR, 0))
        return errno == EEXIST || errno == EPERM ? UFS_FORWARD : -errno;
    keep_last(node, &status, status.st_nlink - 1);
    ufs_forget_names_above(parent);
    ufs_unbind(turn->table, parent, name);
    return 0;
}

/* Put a whiteout in the place of a file of upper: 0, or what to return. */
static int cover_upper(struct ufs_table *table, const char *path)
{
    char draft[UFS_DRAFT_SIZE];
    int failed;

    if (table->work == -1)
        return UFS_FORWARD;
    ufs_name_draft(table, draft);
    if (mknodat(table->work, draft, S_IFCHR, 0))
        return errno == EPERM ? UFS_FORWARD : -errno;
    if (!renameat(table->work, draft, table->layers[0].fd, path))
        return 0;
    failed = -errno;
    unlinkat(table->work, draft, 0);
    return failed;
}

static int remove_name(struct turn *turn, bool directory)
{
    char buffer[UFS_PATH_SIZE], *path;
    const char *name = turn->argument;
    struct ufs_node *parent, *node;
    struct stat status;
    int failed = at_directory(turn, &parent), below;

    if (!failed && !directory && !ufs_is_removed(parent)) {
        node = ufs_child(turn->table, parent, name);
        if (node && !(node->flags & (UFS_UPPER | UFS_BUSY | UFS_STALE)) && node->type != DT_DIR) {
            failed = refuse_removal(turn, parent, node);
            if (!failed)
                failed = copy_up(turn, parent, 0);
            return failed ? failed : cover(turn, parent, node, name);
        }
    }
    if (!failed)
        failed = plain(turn, parent, name, &node, buffer, &path, &status);
    if (!failed)
        failed = refuse_removal(turn, parent, node);
    if (failed)
        return failed;
    below = ufs_exists_below(turn->table, parent, name);
    if (below == -1)
        return -errno;
    if (directory != (node->type == DT_DIR) || (below && directory))
        return UFS_FORWARD;
    if (keep_idle(turn, node))
        return -errno;
    if (below) {
        failed = cover_upper(turn->table, path);
        if (failed)
            return failed;
    } else if (unlinkat(turn->table->layers[0].fd, path, directory ? AT_REMOVEDIR : 0)) {
        return directory && errno == ENOTEMPTY ? UFS_FORWARD : -errno;
    }
    keep_last(node, &status, 0);
    ufs_forget_names_above(parent);
    ufs_unbind(turn->table, parent, name);
    return 0;
}

static int on_unlink(struct turn *turn)
{
    return remove_name(turn, false);
}

static int on_rmdir(struct turn *turn)
{
    return remove_name(turn, true);
}

/* Whether the flags of files, or of what they lie in, forbid a rename: 0, or what to return. */
static int refuse_rename(const struct turn *turn, struct ufs_node *old_parent,
                         const char *old_name, struct ufs_node *new_parent, const char *new_name)
{
    struct ufs_node *old = ufs_child(turn->table, old_parent, old_name);
    struct ufs_node *new = ufs_child(turn->table, new_parent, new_name);
    int failed;

    if (!old)
        return UFS_FORWARD;
    failed = refuse_removal(turn, old_parent, old);
    if (failed)
        return failed;
    return new ? refuse_removal(turn, new_parent, new) : refuse(turn, new_parent, FS_IMMUTABLE_FL);
}

/* Before a rename: make upper hold a file of that name, and the directory that it goes to. 0, or what
 * to return. */
static int prepare_rename(struct turn *turn, struct ufs_node *parent, const char *name,
                          struct ufs_node *new_parent)
{
    struct ufs_node *node = ufs_child(turn->table, parent, name);
    int failed;

    if (!node || node->type == DT_DIR || node->flags & UFS_STALE)
        return new_parent->flags & UFS_UPPER ? 0 : UFS_FORWARD;
    failed = copy_up(turn, node, UINT64_MAX);
    return failed ? failed : copy_up(turn, new_parent, 0);
}

/* What the new name of a rename shows before. */
struct replaced {
    struct ufs_node *node; /* NULL: nothing */
    struct stat status;    /* its */
    bool whiteout;         /* upper hides it already */
};

/* 0, or what to return. */
static int plan_replacing(struct turn *turn, struct ufs_node *parent, const char *name,
                          const char *path, const struct ufs_node *old, struct replaced *replaced)
{
    struct ufs_node *node = ufs_child(turn->table, parent, name);
    struct stat *status = &replaced->status;
    int upper = turn->table->layers[0].fd, below;

    replaced->node = node;
    replaced->whiteout = false;
    if (node && (node->flags & (UFS_BUSY | UFS_STALE) || node == old || node->type == DT_DIR
                 || old->type == DT_DIR))
        return UFS_FORWARD;
    if (!fstatat(upper, path, status, AT_SYMLINK_NOFOLLOW)) {
        replaced->whiteout = S_ISCHR(status->st_mode) && !status->st_rdev;
        if (replaced->whiteout)
            return node || old->type == DT_DIR ? UFS_FORWARD : 0;
        return node && S_ISREG(status->st_mode) && status->st_nlink == 1 ? 0 : UFS_FORWARD;
    }
    if (errno != ENOENT)
        return -errno;
    below = ufs_exists_below(turn->table, parent, name);
    if (below == -1)
        return -errno;
    if (!node)
        return below ? UFS_FORWARD : 0;
    return below ? read_status(turn, node, status) : UFS_FORWARD;
}

/* Rename within upper, leaving a whiteout where the old name would show a lower file: 0, or what to
 * return. */
static int rename_upper(const struct turn *turn, const char *old_path, const char *new_path,
                        bool below, bool whiteout, unsigned flags)
{
    int upper = turn->table->layers[0].fd;

    if (below)
        flags = whiteout ? RENAME_EXCHANGE : flags | RENAME_WHITEOUT;
    else if (whiteout)
        flags = 0;
    if (!renameat2(upper, old_path, upper, new_path, flags))
        return 0;
    /* A filesystem that makes no whiteouts by itself. */
    return flags & RENAME_WHITEOUT && (errno == EINVAL || errno == EPERM) ? UFS_FORWARD : -errno;
}

/* Rename a file, or a directory of upper alone that leaves nothing of lower layers to hide. */
static int rename_plain(struct turn *turn, uint64_t new_parent_id, uint32_t flags,
                        const char *old_name)
{
    const char *new_name = old_name + strlen(old_name) + 1;
    char old_buffer[UFS_PATH_SIZE], new_buffer[UFS_PATH_SIZE], *old_path, *new_path;
    struct ufs_node *old_parent, *new_parent, *old;
    struct ufs_table *table = turn->table;
    struct replaced replaced;
    struct stat status;
    int failed, below;

    failed = at_directory(turn, &old_parent);
    if (failed)
        return failed;
    new_parent = ufs_node(table, new_parent_id);
    if (!new_parent || new_parent->type != DT_DIR)
        return -ESTALE;
    if (flags & ~(uint32_t)RENAME_NOREPLACE || is_for_python(new_name) || ufs_is_removed(new_parent))
        return UFS_FORWARD;
    failed = refuse_rename(turn, old_parent, old_name, new_parent, new_name);
    if (!failed)
        failed = prepare_rename(turn, old_parent, old_name, new_parent);
    if (!failed)
        failed = plain(turn, old_parent, old_name, &old, old_buffer, &old_path, &status);
    if (failed)
        return failed;
    /* A directory needs marks where it goes. */
    if (old->type == DT_DIR && ufs_is_merged(new_parent) && !(old->flags & UFS_OPAQUE))
        return UFS_FORWARD;
    below = ufs_exists_below(table, old_parent, old_name);
    if (below == -1)
        return -errno;
    if (below && old->type == DT_DIR)
        return UFS_FORWARD;
    new_path = ufs_upper_path(new_parent, new_name, new_buffer);
    if (!new_path)
        return -errno;
    failed = plan_replacing(turn, new_parent, new_name, new_path, old, &replaced);
    if (failed)
        return failed;
    if (replaced.node && (flags & RENAME_NOREPLACE || keep_idle(turn, replaced.node)))
        return UFS_FORWARD;
    if (old->flags & UFS_ORIGIN && old_parent != new_parent)
        failed = note_impure(turn, new_parent);
    if (!failed)
        failed = rename_upper(turn, old_path, new_path, below, replaced.whiteout, flags);
    if (failed)
        return failed;
    ufs_forget_names_above(old_parent);
    ufs_forget_names_above(new_parent);
    old->lookups++; /* it has no name for a moment */
    ufs_unbind(table, old_parent, old_name);
    if (replaced.node) {
        keep_last(replaced.node, &replaced.status, replaced.status.st_nlink - 1);
        ufs_unbind(table, new_parent, new_name);
    }
    failed = ufs_bind(table, old, new_parent, new_name) ? -ENOMEM : 0;
    old->lookups--;
    return failed;
}


static int on_rename(struct turn *turn)
{
    const struct fuse_rename_in *in = turn->argument;

    return rename_plain(turn, in->newdir, 0, (const char *)(in + 1));
}

static int on_rename2(struct turn *turn)
{
    const struct fuse_rename2_in *in = turn->argument;

    return rename_plain(turn, in->newdir, in->flags, (const char *)(in + 1));
}

/* Directories: names by the order of their hashes, which are their offsets. So a name that stays
 * is neither lost nor listed twice, whatever else changes meanwhile, and nothing has to be kept
 * while a directory is open. */

enum { UFS_DOT = 1, UFS_DOT_DOT = 2, UFS_FIRST_OFFSET = 3 };

static uint64_t offset_of(uint64_t hash)
{
    return (hash >> 1) < UFS_FIRST_OFFSET ? UFS_FIRST_OFFSET : hash >> 1;
}

/* The room for one more name in the reply, or NULL where it is full. */
static struct fuse_dirent *dirent_room(struct turn *turn, size_t most, size_t length, bool plus,
                                       struct fuse_entry_out **entry)
{
    size_t head = (plus ? sizeof **entry : 0) + FUSE_NAME_OFFSET;
    size_t size = FUSE_DIRENT_ALIGN(head + length);
    char *place = turn->reply + turn->length;

    if (turn->length + size > most)
        return NULL;
    room(turn, size);
    *entry = plus ? (struct fuse_entry_out *)place : NULL;
    return (struct fuse_dirent *)(place + (plus ? sizeof **entry : 0));
}

static void fill_dirent(struct fuse_dirent *dirent, const char *name, size_t length,
                        uint64_t number, uint64_t offset, unsigned type)
{
    dirent->ino = number;
    dirent->off = offset;
    dirent->namelen = (uint32_t)length;
    dirent->type = type;
    memcpy(dirent->name, name, length);
}

/* One name of a directory: 0, UFS_FORWARD where the reply is full, or -errno. */
static int list_name(struct turn *turn, struct ufs_node *directory, const char *name,
                     const struct ufs_entry *entry, bool upper, size_t most, bool plus)
{
    struct fuse_entry_out *out;
    struct fuse_dirent *dirent;
    size_t length = strlen(name);
    uint64_t number;
    struct ufs_node *node;
    struct stat status;
    bool filled, kept = !upper || (!directory->lower_count && !(directory->flags & UFS_IMPURE));
    int found;

    /* What upper holds may be a copy from below, whose number it keeps. */
    if (!plus && kept && !(upper && entry->type == DT_DIR)
        && ufs_number(turn->table,
                      turn->table->layers[upper ? 0 : directory->lower[entry->place].layer].device,
                      entry->inode, &number)) {
        dirent = dirent_room(turn, most, length, false, &out);
        if (!dirent)
            return UFS_FORWARD;
        fill_dirent(dirent, name, length, number, offset_of(entry->hash), entry->type);
        return 0;
    }
    found = ufs_find(turn->table, &turn->session->asked, directory, name, &node, &status, &filled);
    if (found == UFS_FOUND && !filled)
        found = read_status(turn, node, &status) ? UFS_ABSENT : UFS_FOUND;
    if (found == UFS_ABSENT || found == -ENOENT)
        return 0; /* removed since it was listed */
    dirent = dirent_room(turn, most, length, plus, &out);
    if (found < 0) {
        /* out stays all 0: the kernel asks for the name by itself, and hears of the error then */
        if (dirent)
            fill_dirent(dirent, name, length, entry->inode ? entry->inode : 1,
                        offset_of(entry->hash), entry->type);
        return dirent ? 0 : UFS_FORWARD;
    }
    if (!dirent) {
        ufs_drop_unused(turn->table, node);
        return UFS_FORWARD;
    }
    fill_dirent(dirent, name, length, node->number, offset_of(entry->hash), node->type);
    if (out)
        fill_entry(turn, node, &status, out);
    else
        ufs_drop_unused(turn->table, node);
    return 0;
}

static int list_dots(struct turn *turn, const struct ufs_node *directory, uint64_t offset,
                     size_t most, bool plus)
{
    const struct ufs_node *parent = directory->names ? directory->names->parent : directory;
    struct fuse_entry_out *entry; /* all 0: the kernel learns nothing of these */
    struct fuse_dirent *dirent;

    for (; offset < UFS_DOT_DOT; offset++) {
        dirent = dirent_room(turn, most, offset + 1, plus, &entry);
        if (!dirent)
            return UFS_FORWARD;
        fill_dirent(dirent, "..", offset + 1, offset ? parent->number : directory->number,
                    offset + 1, DT_DIR);
    }
    return 0;
}

static size_t first_after(const struct ufs_listing *listing, uint64_t offset)
{
    size_t low = 0, high = listing ? listing->count : 0, middle;

    while (low < high) {
        middle = low + (high - low) / 2;
        if (offset_of(listing->entries[middle].hash) <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int list_names(struct turn *turn, struct ufs_node *directory, uint64_t offset, size_t most,
                      bool plus)
{
    const struct ufs_listing *above = directory->above, *below = directory->below;
    size_t a = first_after(above, offset), b = first_after(below, offset);
    size_t above_count = above ? above->count : 0, below_count = below ? below->count : 0;
    const struct ufs_entry *one, *other;
    int order, listed = 0;

    while (!listed && (a < above_count || b < below_count)) {
        one = a < above_count ? &above->entries[a] : NULL;
        other = b < below_count ? &below->entries[b] : NULL;
        order = !other ? -1 : !one ? 1 : (one->hash > other->hash) - (one->hash < other->hash);
        if (!order)
            order = strcmp(above->names + one->name, below->names + other->name);
        if (order <= 0)
            a++;
        if (order >= 0)
            b++;
        if (order > 0)
            listed = list_name(turn, directory, below->names + other->name, other, false, most,
                               plus);
        else if (one->type != DT_WHT)
            listed = list_name(turn, directory, above->names + one->name, one, true, most, plus);
    }
    return listed;
}

/* At the end of a directory the kernel keeps the names that it was told. With them may be some
 * from before the last change, of a reader whom that overtook: fs/fuse/readdir.c takes them for
 * new if another one began to read before they came. So it must not keep these while there may be
 * such readers. */
static void finish_listing(struct turn *turn, struct ufs_node *directory)
{
    ufs_drop_names_above(directory);
    turn->names = ufs_now() - directory->changed < UFS_SETTLED;
    if (turn->names)
        turn->invalid = directory->id;
}

static int read_directory(struct turn *turn, bool plus)
{
    const struct fuse_read_in *in = turn->argument;
    size_t most = in->size < UFS_DATA_SIZE ? in->size : UFS_DATA_SIZE;
    struct ufs_node *directory;
    int listed = at_directory(turn, &directory);

    if (listed)
        return listed;
    if (ufs_is_removed(directory))
        return in->offset ? 0 : list_dots(turn, directory, 0, most, plus);
    if (directory->lower_count && !directory->below)
        directory->below = ufs_list_lower(turn->table, directory);
    if (directory->lower_count && !directory->below)
        return -errno;
    if (directory->flags & UFS_UPPER && !directory->above) {
        directory->above = ufs_list_upper(turn->table, directory);
        if (!directory->above)
            return -errno;
    }
    listed = list_dots(turn, directory, in->offset, most, plus);
    if (!listed)
        listed = list_names(turn, directory, in->offset, most, plus);
    if (!turn->length)
        finish_listing(turn, directory);
    return turn->length || listed == UFS_FORWARD ? 0 : listed;
}

static int on_readdir(struct turn *turn)
{
    return read_directory(turn, false);
}

static int on_readdirplus(struct turn *turn)
{
    return read_directory(turn, true);
}

/* May take long, so it keeps the lock no longer than it needs a path. */
static int on_fsyncdir(struct turn *turn)
{
    char buffer[UFS_PATH_SIZE], *path = NULL;
    struct ufs_node *node;
    int fd, failed;

    step_aside(turn);
    pthread_mutex_lock(&turn->table->lock);
    failed = at_node(turn, &node);
    if (!failed && node->flags & UFS_UPPER && turn->session->syncs)
        path = ufs_upper_path(node, NULL, buffer);
    pthread_mutex_unlock(&turn->table->lock);
    if (failed || !path)
        return failed;
    fd = ufs_open_beneath(turn->table->layers[0].fd, path, O_RDONLY | O_DIRECTORY, 0);
    failed = fd == -1 || fsync(fd) ? -errno : 0;
    if (fd != -1)
        close(fd);
    return failed;
}

/* Of the top layer's filesystem, as overlayfs tells. */
static int on_statfs(struct turn *turn)
{
    struct fuse_statfs_out *out = room(turn, sizeof *out);
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

/* What the kernel asks once and, told that we have none, never again. */
static int on_nothing(struct turn *turn)
{
    (void)turn;
    return -ENOSYS;
}

static int on_interrupt(struct turn *turn)
{
    (void)turn;
    return UFS_SILENT;
}

/* The closed list of what is answered here. size: of the fixed part of the argument, bytes.
 * names: how many strings follow. */
struct handler {
    int (*answer)(struct turn *turn);
    unsigned size, names;
    bool locks, comes_back;
};

static const struct handler handlers[] = {
    [FUSE_LOOKUP] = { on_lookup, 0, 1, true, false },
    [FUSE_FORGET] = { on_forget, sizeof(struct fuse_forget_in), 0, true, false },
    [FUSE_GETATTR] = { on_getattr, sizeof(struct fuse_getattr_in), 0, true, false },
    [FUSE_SETATTR] = { on_setattr, sizeof(struct fuse_setattr_in), 0, true, true },
    [FUSE_READLINK] = { on_readlink, 0, 0, true, false },
    [FUSE_SYMLINK] = { on_symlink, 0, 2, true, false },
    [FUSE_MKNOD] = { on_mknod, sizeof(struct fuse_mknod_in), 1, true, false },
    [FUSE_MKDIR] = { on_mkdir, sizeof(struct fuse_mkdir_in), 1, true, false },
    [FUSE_UNLINK] = { on_unlink, 0, 1, true, false },
    [FUSE_RMDIR] = { on_rmdir, 0, 1, true, false },
    [FUSE_RENAME] = { on_rename, sizeof(struct fuse_rename_in), 2, true, false },
    [FUSE_OPEN] = { on_open, sizeof(struct fuse_open_in), 0, true, true },
    [FUSE_READ] = { on_read, sizeof(struct fuse_read_in), 0, false, false },
    [FUSE_WRITE] = { on_write, sizeof(struct fuse_write_in), 0, false, false },
    [FUSE_TMPFILE] = { on_tmpfile, sizeof(struct fuse_create_in), 0, true, false },
    [FUSE_LINK] = { on_link, sizeof(struct fuse_link_in), 1, true, false },
    [FUSE_RELEASE] = { on_release, sizeof(struct fuse_release_in), 0, true, false },
    [FUSE_STATFS] = { on_statfs, 0, 0, false, false },
    [FUSE_FSYNC] = { on_fsync, sizeof(struct fuse_fsync_in), 0, false, false },
    [FUSE_GETXATTR] = { on_getxattr, sizeof(struct fuse_getxattr_in), 1, true, false },
    [FUSE_LISTXATTR] = { on_listxattr, sizeof(struct fuse_getxattr_in), 0, true, false },
    [FUSE_FLUSH] = { on_nothing, 0, 0, false, false },
    [FUSE_OPENDIR] = { on_nothing, 0, 0, false, false },
    [FUSE_READDIR] = { on_readdir, sizeof(struct fuse_read_in), 0, true, false },
    [FUSE_FSYNCDIR] = { on_fsyncdir, 0, 0, false, false },
    [FUSE_CREATE] = { on_create, sizeof(struct fuse_create_in), 1, true, true },
    [FUSE_INTERRUPT] = { on_interrupt, 0, 0, false, false },
    [FUSE_IOCTL] = { on_ioctl, sizeof(struct fuse_ioctl_in), 0, true, false },
    [FUSE_BATCH_FORGET] = { on_batch_forget, sizeof(struct fuse_batch_forget_in), 0, true, false },
    [FUSE_FALLOCATE] = { on_fallocate, sizeof(struct fuse_fallocate_in), 0, false, false },
    [FUSE_READDIRPLUS] = { on_readdirplus, sizeof(struct fuse_read_in), 0, true, false },
    [FUSE_RENAME2] = { on_rename2, sizeof(struct fuse_rename2_in), 2, true, false },
    [FUSE_LSEEK] = { on_lseek, sizeof(struct fuse_lseek_in), 0, false, false },
    [FUSE_COPY_FILE_RANGE] = { on_copy_file_range, sizeof(struct fuse_copy_file_range_in), 0,
                               false, false },
    [UFS_FUSE_STATX] = { on_statx, sizeof(struct ufs_statx_in), 0, true, false },
};

static const struct handler *handler_of(const struct fuse_in_header *in)
{
    const struct handler *handler;

    if (in->opcode >= sizeof handlers / sizeof *handlers)
        return NULL;
    handler = &handlers[in->opcode];
    return handler->answer ? handler : NULL;
}

/* Whether a request is as long as it has to be, and its strings end. */
static bool is_whole(const struct handler *handler, const struct fuse_in_header *in, size_t size)
{
    const char *at = (const char *)(in + 1) + handler->size, *end = (const char *)in + size;
    const char *next;
    /* the last one is no directory's: a symlink's target, or an attribute */
    unsigned texts = in->opcode == FUSE_SYMLINK || in->opcode == FUSE_GETXATTR;

    if (in->len != size || at > end)
        return false;
    for (unsigned names = handler->names; names; names--) {
        next = memchr(at, '\0', (size_t)(end - at));
        if (!next || (names > texts && !is_entry(at)))
            return false;
        at = next + 1;
    }
    if (in->opcode == FUSE_WRITE)
        return ((const struct fuse_write_in *)(in + 1))->size <= (size_t)(end - at);
    if (in->opcode == FUSE_IOCTL)
        return ((const struct fuse_ioctl_in *)(in + 1))->in_size <= (size_t)(end - at);
    if (in->opcode == FUSE_BATCH_FORGET)
        return ((const struct fuse_batch_forget_in *)(in + 1))->count
               <= (size_t)(end - at) / sizeof(struct fuse_forget_one);
    return true;
}

/* Pass a request on to pyfuse3; what may come back is kept. */
static void forward(struct ufs_session *session, const struct handler *handler,
                    const struct fuse_in_header *in, size_t size)
{
    struct ufs_pending *pending;

    if (size > UFS_FORWARDED_MAX) {
        send_reply(session, in->unique, -EIO, NULL, 0);
        return;
    }
    if (handler && handler->comes_back) {
        pending = malloc(sizeof *pending + size);
        if (!pending) {
            send_reply(session, in->unique, -ENOMEM, NULL, 0);
            return;
        }
        pending->size = size;
        memcpy(&pending->request, in, size);
        pthread_mutex_lock(&session->pending_lock);
        pending->next = session->pending;
        session->pending = pending;
        pthread_mutex_unlock(&session->pending_lock);
    }
    if (send(session->socket, in, size, MSG_NOSIGNAL) == -1)
        send_reply(session, in->unique, -EIO, NULL, 0);
}

/* back: whether it comes back from pyfuse3, which has no other way to answer it. leads: whether
 * this thread holds session->leading; whether it does afterwards is the result. */
static bool answer(struct ufs_session *session, const struct fuse_in_header *in, size_t size,
                   const struct desk *desk, bool back, bool leads)
{
    const struct handler *handler = handler_of(in);
    struct turn turn = {
        .session = session, .table = &session->table, .in = in, .argument = in + 1,
        .reply = desk->reply, .pipe = desk->pipe, .leads = leads,
    };
    int result;

    if (!handler) {
        forward(session, NULL, in, size);
        return leads;
    }
    if (!is_whole(handler, in, size)) {
        send_reply(session, in->unique, -EINVAL, NULL, 0);
        return leads;
    }
    if (handler->locks)
        pthread_mutex_lock(&session->table.lock);
    result = handler->answer(&turn);
    if (handler->locks)
        pthread_mutex_unlock(&session->table.lock);
    if (turn.names)
        step_aside(&turn); /* it may wait for one who reads them, and he for us */
    if (turn.invalid)
        ufs_invalidate(session, turn.invalid, turn.names);
    if (result == UFS_FORWARD && !back)
        forward(session, handler, in, size);
    else if (result == UFS_FORWARD)
        send_reply(session, in->unique, -EIO, NULL, 0);
    else if (result != UFS_SILENT)
        send_reply(session, in->unique, result, turn.reply, result ? 0 : turn.length);
    return turn.leads;
}

static void close_pipe(struct desk *desk)
{
    if (desk->pipe[0] == -1)
        return;
    close(desk->pipe[0]);
    close(desk->pipe[1]);
    desk->pipe[0] = -1;
}

static void clear_desk(struct desk *desk)
{
    free(desk->request);
    free(desk->reply);
    close_pipe(desk);
}

/* false: out of memory. */
static bool set_desk(struct desk *desk)
{
    desk->request = malloc(UFS_REQUEST_SIZE);
    desk->reply = malloc(UFS_REQUEST_SIZE);
    if (pipe2(desk->pipe, O_CLOEXEC | O_NONBLOCK))
        desk->pipe[0] = -1;
    else if (fcntl(desk->pipe[0], F_SETPIPE_SZ, UFS_PIPE_SIZE) == -1)
        close_pipe(desk);
    if (desk->request && desk->reply)
        return true;
    clear_desk(desk);
    return false;
}

int ufs_serve(struct ufs_session *session)
{
    bool leads = false;
    struct desk desk;
    ssize_t length;
    int failed;

    if (!set_desk(&desk))
        return -1;
    for (;;) {
        if (!leads)
            pthread_mutex_lock(&session->leading);
        leads = true;
        length = read(session->device, desk.request, UFS_REQUEST_SIZE);
        if (length == -1 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (length < (ssize_t)sizeof(struct fuse_in_header))
            break;
        leads = answer(session, (const struct fuse_in_header *)desk.request, (size_t)length, &desk,
                       false, true);
    }
    failed = length == -1 && errno == ENODEV ? 0 : -1;
    pthread_mutex_unlock(&session->leading);
    clear_desk(&desk);
    return failed;
}

static struct ufs_pending *take_pending(struct ufs_session *session, uint64_t unique)
{
    struct ufs_pending **link, *found;

    pthread_mutex_lock(&session->pending_lock);
    for (link = &session->pending; *link && (*link)->request.unique != unique;)
        link = &(*link)->next;
    found = *link;
    if (found)
        *link = found->next;
    pthread_mutex_unlock(&session->pending_lock);
    return found;
}

/* A file that Python has made is passed through to as well. */
static void finish_create(struct ufs_session *session, char *reply, size_t size)
{
    struct fuse_entry_out *entry = (void *)(reply + sizeof(struct fuse_out_header));
    struct fuse_open_out *out = (void *)(entry + 1);
    struct ufs_node *node;

    if (size < sizeof(struct fuse_out_header) + sizeof *entry + sizeof *out)
        return;
    pthread_mutex_lock(&session->table.lock);
    node = ufs_node(&session->table, entry->nodeid);
    if (node && node->open)
        fill_open(node, (int)out->fh, out);
    pthread_mutex_unlock(&session->table.lock);
}

int ufs_carry(struct ufs_session *session)
{
    struct ufs_pending *pending;
    struct fuse_out_header *out;
    ssize_t length, written;
    struct desk desk;

    if (!set_desk(&desk))
        return -1;
    out = (void *)desk.request;
    for (;;) {
        length = recv(session->socket, out, UFS_REQUEST_SIZE, 0);
        if (length == -1 && errno == EINTR)
            continue;
        if (length < (ssize_t)sizeof *out)
            break;
        pending = out->unique ? take_pending(session, out->unique) : NULL;
        if (pending && out->error == -UFS_REDO) {
            answer(session, &pending->request, pending->size, &desk, true, false);
        } else {
            if (pending && pending->request.opcode == FUSE_CREATE && !out->error)
                finish_create(session, desk.request, (size_t)length);
            written = write(session->device, out, (size_t)length);
            (void)written; /* ENOENT: interrupted, or the kernel has forgotten the node */
        }
        free(pending);
    }
    clear_desk(&desk);
    return length == 0 ? 0 : -1;
}

void ufs_forget_pending(struct ufs_session *session)
{
    struct ufs_pending *next;

    for (; session->pending; session->pending = next) {
        next = session->pending->next;
        free(session->pending);
    }
}
