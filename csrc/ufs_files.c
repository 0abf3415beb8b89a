#define _GNU_SOURCE
#include "ufs_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_serve.h"

enum {
    UFS_CACHED_MAX = 128 << 10, /* larger files are worth their setting up of passthrough */
    UFS_COPY_MAX = 64 << 20,    /* bytes that one thread is busy copying */
    UFS_GIVEN_MAX = 32 << 10,   /* bytes of files that the kernel need not ask for */
    UFS_QUICK_MAX = 64 << 10,   /* bytes that are read or written while others wait */
    UFS_SPLICED_MAX = 512 << 10 /* bytes of a file whose pages find room in a pipe */
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

/* The flags that concern a layer's file; the kernel has others of its own. */
static const int LAYER_FLAGS =
    O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC | O_NONBLOCK | O_NOFOLLOW;

int ufs_layer_flags(const struct ufs_session *session, uint32_t flags)
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

void ufs_fill_open(const struct ufs_node *node, int fd, struct fuse_open_out *out)
{
    out->fh = (uint64_t)fd;
    out->open_flags = UFS_FOPEN_NOFLUSH;
    out->open_flags |= node->open->backing ? (uint32_t)UFS_FOPEN_PASSTHROUGH : FOPEN_KEEP_CACHE;
    out->padding = (uint32_t)node->open->backing; /* backing_id, since Linux 6.9 */
}

int ufs_tell_open(struct ufs_turn *turn, struct ufs_node *node, int fd, int flags, bool lower)
{
    if (ufs_keep_open(turn->session, node, fd, flags, lower)) {
        close(fd);
        return -ENOMEM;
    }
    ufs_fill_open(node, fd, ufs_room(turn, sizeof(struct fuse_open_out)));
    return 0;
}

void ufs_drop_set_id(struct ufs_turn *turn, int fd)
{
    struct stat status;
    mode_t kept;

    if (fstat(fd, &status))
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

/* The data of a small lower file, into the room after the reply: its length, 0 where the kernel shall
 * ask for it. Lets go of the lock while it waits for a disk. */
static ssize_t small_data(struct ufs_turn *turn, const struct ufs_node *node, int fd)
{
    struct iovec part = { turn->reply + turn->length, UFS_GIVEN_MAX + 1 };
    ssize_t length = preadv2(fd, &part, 1, 0, RWF_NOWAIT);
    struct stat status;

    if (length == -1 && errno == EAGAIN && !fstat(fd, &status)
        && status.st_size <= UFS_GIVEN_MAX) {
        ufs_step_aside(turn);
        pthread_mutex_unlock(&turn->table->lock);
        length = pread(fd, part.iov_base, part.iov_len, 0);
        pthread_mutex_lock(&turn->table->lock);
        /* Others may write it by now, or the kernel wait for a page that it asked us for, while we
         * would wait for that page. */
        if (node->flags & (UFS_UPPER | UFS_BUSY) || node->open->idle > 1)
            return 0;
    }
    return length > UFS_GIVEN_MAX || length < 0 ? 0 : length;
}

/* Give the kernel the data of a small file that is opened for the first time: it is spared a request
 * for it. */
static void give_data(struct ufs_turn *turn, struct ufs_node *node)
{
    struct {
        struct fuse_out_header head;
        struct fuse_notify_store_out body;
    } note = { .head.error = FUSE_NOTIFY_STORE, .body.nodeid = node->id };
    struct iovec parts[] = { { &note, sizeof note }, { turn->reply + turn->length, 0 } };
    int fd = ufs_wake_idle(turn->table, node);
    ssize_t length;

    node->flags |= UFS_GIVEN;
    length = fd == -1 ? 0 : small_data(turn, node, fd);
    if (!length)
        return;
    note.head.len = (uint32_t)(sizeof note + (size_t)length);
    note.body.size = (uint32_t)length;
    parts[1].iov_len = (size_t)length;
    length = writev(turn->session->device, parts, 2);
    (void)length; /* the kernel will ask then */
}

static int open_idle(struct ufs_turn *turn, struct ufs_node *node)
{
    struct fuse_open_out *out = ufs_room(turn, sizeof *out);

    if (ufs_open_idle(node))
        return -ENOMEM;
    if (!(node->flags & UFS_GIVEN))
        give_data(turn, node);
    out->fh = UFS_IDLE | node->id;
    out->open_flags = UFS_FOPEN_NOFLUSH | FOPEN_KEEP_CACHE;
    return 0;
}

/* The descriptor of a file handle; -1 with errno. */
static int descriptor(const struct ufs_turn *turn, uint64_t handle)
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
static int refuse_opening(const struct ufs_turn *turn, struct ufs_node *node, uint32_t flags)
{
    bool writes = (flags & O_ACCMODE) != O_RDONLY, appends = flags & O_APPEND && !(flags & O_TRUNC);

    if (node->type != DT_REG || !(writes || flags & O_TRUNC))
        return 0;
    return ufs_refuse(turn, node, writes && appends ? FS_IMMUTABLE_FL : UFS_GUARDS);
}

int ufs_on_open(struct ufs_turn *turn)
{
    const struct fuse_open_in *in = turn->argument;
    int flags = ufs_layer_flags(turn->session, in->flags), fd, layer, failed;
    char buffer[UFS_PATH_SIZE], *path;
    struct ufs_node *node;
    bool lower;

    failed = ufs_at_node(turn, &node);
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
            failed = ufs_copy_up(turn, node, flags & O_TRUNC ? 0 : UINT64_MAX);
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
    if (in->open_flags & FUSE_OPEN_KILL_SUIDGID)
        ufs_drop_set_id(turn, fd);
    return ufs_tell_open(turn, node, fd, flags, lower);
}

static void keep_last_of_open(const struct ufs_turn *turn, struct ufs_node *node)
{
    struct stat status;

    if (ufs_is_removed(node) && !ufs_read_status(turn, node, &status))
        ufs_keep_last(node, &status, status.st_nlink);
}

static bool is_open(const struct ufs_table *table, int fd)
{
    return fd >= 0 && fd < table->file_room && table->files[fd].node;
}

int ufs_on_release(struct ufs_turn *turn)
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
    if (!is_open(table, fd))
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
static bool splice_reply(const struct ufs_turn *turn, int fd, const struct fuse_read_in *in)
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

int ufs_on_read(struct ufs_turn *turn)
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
        ufs_step_aside(turn);
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

int ufs_on_write(struct ufs_turn *turn)
{
    const struct fuse_write_in *in = turn->argument;
    struct fuse_write_out *out = ufs_room(turn, sizeof *out);
    ssize_t length;

    if (in->fh & UFS_IDLE)
        return -EBADF; /* that is open for reading */
    if (in->size > UFS_QUICK_MAX)
        ufs_step_aside(turn);
    length = write_data(in);
    if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
        ufs_drop_set_id(turn, (int)in->fh);
    if (length == -1)
        return -errno;
    out->size = (uint32_t)length;
    return 0;
}

/* The first fdatasync(2) of an open file is an fsync(2): on ext4 the other leaves out the rename by
 * which a copy came into upper, and then a loss of power brings the lower file back. */
int ufs_on_fsync(struct ufs_turn *turn)
{
    const struct fuse_fsync_in *in = turn->argument;
    struct ufs_table *table = turn->table;
    int fd = descriptor(turn, in->fh);
    bool known, lower = false, data = false;

    if (fd == -1)
        return -errno;
    pthread_mutex_lock(&table->lock);
    known = is_open(table, fd);
    if (known) {
        lower = table->files[fd].lower;
        data = in->fsync_flags & FUSE_FSYNC_FDATASYNC && table->files[fd].synced;
    }
    pthread_mutex_unlock(&table->lock);
    if (!known)
        return -EBADF;
    if (lower || !turn->session->syncs)
        return 0;
    ufs_step_aside(turn);
    if (data ? fdatasync(fd) : fsync(fd))
        return -errno;
    pthread_mutex_lock(&table->lock);
    table->files[fd].synced = true;
    pthread_mutex_unlock(&table->lock);
    return 0;
}

/* Whether the kernel's cache may hold what was written to a node's file. */
static bool is_written(const struct ufs_table *table, const struct ufs_node *node)
{
    if (!node || !node->open || node->open->backing)
        return false;
    for (int fd = node->open->first; fd != -1; fd = table->files[fd].next)
        if ((table->files[fd].flags & O_ACCMODE) != O_RDONLY)
            return true;
    return false;
}

/* The kernel asks where the data is before it has written out what it keeps (fuse_lseek). */
static void have_written_out(struct ufs_turn *turn)
{
    bool written;

    pthread_mutex_lock(&turn->table->lock);
    written = is_written(turn->table, ufs_node(turn->table, turn->in->nodeid));
    pthread_mutex_unlock(&turn->table->lock);
    if (!written)
        return;
    ufs_step_aside(turn); /* for who answers the writes */
    ufs_invalidate(turn->session, turn->in->nodeid, true);
}

int ufs_on_lseek(struct ufs_turn *turn)
{
    const struct fuse_lseek_in *in = turn->argument;
    struct fuse_lseek_out *out = ufs_room(turn, sizeof *out);
    off_t offset;
    int fd;

    have_written_out(turn);
    fd = descriptor(turn, in->fh);
    offset = fd == -1 ? -1 : lseek(fd, (off_t)in->offset, (int)in->whence);
    if (offset == -1)
        return -errno;
    out->offset = (uint64_t)offset;
    return 0;
}

/* Kernels before 6.1 do not say that they want it (fuse_file_fallocate, without file_modified). */
static void drop_set_id_untold(struct ufs_turn *turn, int fd)
{
    if (turn->in->uid)
        ufs_drop_set_id(turn, fd);
}

int ufs_on_fallocate(struct ufs_turn *turn)
{
    const struct fuse_fallocate_in *in = turn->argument;

    if (in->fh & UFS_IDLE)
        return -EBADF;
    ufs_step_aside(turn);
    if (fallocate((int)in->fh, (int)in->mode, (off_t)in->offset, (off_t)in->length))
        return -errno;
    drop_set_id_untold(turn, (int)in->fh);
    return 0;
}

int ufs_on_copy_file_range(struct ufs_turn *turn)
{
    const struct fuse_copy_file_range_in *in = turn->argument;
    struct fuse_write_out *out = ufs_room(turn, sizeof *out);
    off_t from = (off_t)in->off_in, to = (off_t)in->off_out;
    size_t size = in->len < UFS_COPY_MAX ? in->len : UFS_COPY_MAX;
    int fd = descriptor(turn, in->fh_in);
    ssize_t length;

    if (fd == -1 || in->fh_out & UFS_IDLE)
        return fd == -1 ? -errno : -EBADF;
    ufs_step_aside(turn);
    length = copy_file_range(fd, &from, (int)in->fh_out, &to, size, 0);
    if (length == -1)
        return -errno;
    drop_set_id_untold(turn, (int)in->fh_out);
    out->size = (uint32_t)length;
    return 0;
}
