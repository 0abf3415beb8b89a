#define _GNU_SOURCE
#include "ufs_serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ufs_attributes.h"
#include "ufs_directories.h"
#include "ufs_files.h"
#include "ufs_moves.h"
#include "ufs_names.h"

enum {
    UFS_REQUEST_SIZE = UFS_DATA_SIZE + 8192,
    UFS_FORWARDED_MAX = 1 << 17, /* bytes of the largest request that pyfuse3 is asked to answer */
    UFS_PIPE_SIZE = 1 << 20
};

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
        .body = { .ino = id == UFS_ROOT_ID ? session->root : id, .off = contents ? 0 : -1 },
    };
    ssize_t written = write(session->device, &note, sizeof note);

    (void)written; /* ENOENT: the kernel has forgotten it */
}

/* What the kernel asks once and, told that we have none, never again. */
static int on_nothing(struct ufs_turn *turn)
{
    (void)turn;
    return -ENOSYS;
}

static int on_interrupt(struct ufs_turn *turn)
{
    (void)turn;
    return UFS_SILENT;
}

/* The closed list of what is answered here. size: of the fixed part of the argument, bytes.
 * names: how many strings follow. */
struct handler {
    int (*answer)(struct ufs_turn *turn);
    unsigned size, names;
    bool locks, comes_back;
};

static const struct handler handlers[] = {
    [FUSE_LOOKUP] = { ufs_on_lookup, 0, 1, true, false },
    [FUSE_FORGET] = { ufs_on_forget, sizeof(struct fuse_forget_in), 0, true, false },
    [FUSE_GETATTR] = { ufs_on_getattr, sizeof(struct fuse_getattr_in), 0, true, false },
    [FUSE_SETATTR] = { ufs_on_setattr, sizeof(struct fuse_setattr_in), 0, true, true },
    [FUSE_READLINK] = { ufs_on_readlink, 0, 0, true, false },
    [FUSE_SYMLINK] = { ufs_on_symlink, 0, 2, true, false },
    [FUSE_MKNOD] = { ufs_on_mknod, sizeof(struct fuse_mknod_in), 1, true, false },
    [FUSE_MKDIR] = { ufs_on_mkdir, sizeof(struct fuse_mkdir_in), 1, true, false },
    [FUSE_UNLINK] = { ufs_on_unlink, 0, 1, true, false },
    [FUSE_RMDIR] = { ufs_on_rmdir, 0, 1, true, false },
    [FUSE_RENAME] = { ufs_on_rename, sizeof(struct fuse_rename_in), 2, true, false },
    [FUSE_OPEN] = { ufs_on_open, sizeof(struct fuse_open_in), 0, true, true },
    [FUSE_READ] = { ufs_on_read, sizeof(struct fuse_read_in), 0, false, false },
    [FUSE_WRITE] = { ufs_on_write, sizeof(struct fuse_write_in), 0, false, false },
    [FUSE_TMPFILE] = { ufs_on_tmpfile, sizeof(struct fuse_create_in), 0, true, false },
    [FUSE_LINK] = { ufs_on_link, sizeof(struct fuse_link_in), 1, true, false },
    [FUSE_RELEASE] = { ufs_on_release, sizeof(struct fuse_release_in), 0, true, false },
    [FUSE_STATFS] = { ufs_on_statfs, 0, 0, false, false },
    [FUSE_FSYNC] = { ufs_on_fsync, sizeof(struct fuse_fsync_in), 0, false, false },
    [FUSE_GETXATTR] = { ufs_on_getxattr, sizeof(struct fuse_getxattr_in), 1, true, false },
    [FUSE_LISTXATTR] = { ufs_on_listxattr, sizeof(struct fuse_getxattr_in), 0, true, false },
    [FUSE_FLUSH] = { on_nothing, 0, 0, false, false },
    [FUSE_OPENDIR] = { on_nothing, 0, 0, false, false },
    [FUSE_READDIR] = { ufs_on_readdir, sizeof(struct fuse_read_in), 0, true, false },
    [FUSE_FSYNCDIR] = { ufs_on_fsyncdir, 0, 0, false, false },
    [FUSE_CREATE] = { ufs_on_create, sizeof(struct fuse_create_in), 1, true, true },
    [FUSE_INTERRUPT] = { on_interrupt, 0, 0, false, false },
    [FUSE_IOCTL] = { ufs_on_ioctl, sizeof(struct fuse_ioctl_in), 0, true, false },
    [FUSE_BATCH_FORGET] = { ufs_on_batch_forget, sizeof(struct fuse_batch_forget_in), 0, true,
                            false },
    [FUSE_FALLOCATE] = { ufs_on_fallocate, sizeof(struct fuse_fallocate_in), 0, false, false },
    [FUSE_READDIRPLUS] = { ufs_on_readdirplus, sizeof(struct fuse_read_in), 0, true, false },
    [FUSE_RENAME2] = { ufs_on_rename2, sizeof(struct fuse_rename2_in), 2, true, false },
    [FUSE_LSEEK] = { ufs_on_lseek, sizeof(struct fuse_lseek_in), 0, false, false },
    [FUSE_COPY_FILE_RANGE] = { ufs_on_copy_file_range, sizeof(struct fuse_copy_file_range_in), 0,
                               false, false },
    [UFS_FUSE_STATX] = { ufs_on_statx, sizeof(struct ufs_statx_in), 0, true, false },
};

static const struct handler *handler_of(const struct fuse_in_header *in)
{
    const struct handler *handler;

    if (in->opcode >= sizeof handlers / sizeof *handlers)
        return NULL;
    handler = &handlers[in->opcode];
    return handler->answer ? handler : NULL;
}

/* Whether nothing but an entry of a directory has the name: what else there could be leads out of
 * the layer, and no kernel asks for it. */
static bool is_entry(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
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

/* Have the root called by its one name. */
static void name_root(struct fuse_in_header *in, size_t size)
{
    uint64_t *directory = (uint64_t *)(in + 1); /* into which something is renamed */

    if (in->nodeid == UFS_SHOWN_ROOT_ID)
        in->nodeid = UFS_ROOT_ID;
    if ((in->opcode == FUSE_RENAME || in->opcode == FUSE_RENAME2)
        && size >= sizeof *in + sizeof *directory && *directory == UFS_SHOWN_ROOT_ID)
        *directory = UFS_ROOT_ID;
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
    struct ufs_turn turn = {
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
        ufs_step_aside(&turn); /* it may wait for one who reads them, and he for us */
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
        length = ufs_wait(&session->wait, session->device, desk.request, UFS_REQUEST_SIZE);
        if (length == -1 && (errno == EINTR || errno == ENOENT))
            continue;
        if (length < (ssize_t)sizeof(struct fuse_in_header))
            break;
        name_root((struct fuse_in_header *)desk.request, (size_t)length);
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
        ufs_fill_open(node, (int)out->fh, out);
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
