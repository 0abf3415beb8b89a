/* A fuzzer of what answers the kernel's requests: `make fuzz-requests MINUTES=60`.
 *
 * An input is a session's options and up to 64 requests: opcode, node, argument and names, whole,
 * cut short, or with a length that lies. They go through ufs_serve, in whose place of /dev/fuse
 * read(2) and write(2) are wrapped, over layers made for it. Descriptors are the kernel's to give, so
 * those that replies gave are put into requests; node IDs may be any.
 *
 * Checked are memory and arithmetic (sanitizers; what lies behind a request is poisoned), that each
 * request gets one whole reply, here or from pyfuse3, in whose place we refuse it or hand it back,
 * and that no node, name or file is left when the kernel has let go of all. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/limits.h>
#include <sanitizer/asan_interface.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../../csrc/ufs_serve.h"

enum { REQUESTS = 64, POISONED = 8192, KNOWN = 256, ROOM = 8192, LAYERS = 3, DEPTH = 4, BAD_DESCRIPTOR = 1 << 30 };

static const char BASE[] = "/mnt"; /* where only we have a filesystem mounted */
static const char *const NAMES[] = {
    "a", "b", "d", "d2", "link", "fifo", "hard1", "hard2", "hidden", "opaque", "moved", "new", "new2",
    "", ".", "..", ".wh.a", "d/a", "user.a", "trusted.overlay.opaque", "security.capability", "large",
};
enum { NAME_COUNT = sizeof NAMES / sizeof *NAMES };

struct asked {
    uint64_t unique;
    uint32_t opcode, answers, most;
    bool forwarded;
};

static struct ufs_session session;
static int device = -1, pyfuse3 = -1, layer_fds[LAYERS], work_fd;
static const uint8_t *data;
static size_t left;
static struct asked asked[REQUESTS];
static size_t asked_count;
static uint64_t nodes[KNOWN], handles[KNOWN];
static size_t node_count, handle_count;
static bool letting_go;
static uint64_t forgetting;
static unsigned passes;
static char *poisoned;
static size_t poisoned_size;

#define CHECK(true_thing)                                                       \
    do {                                                                        \
        if (!(true_thing)) {                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #true_thing);    \
            abort();                                                            \
        }                                                                       \
    } while (0)

/* The input. */

static uint8_t byte(void)
{
    if (!left)
        return 0;
    left--;
    return *data++;
}

static void bytes(char *to, size_t size)
{
    size_t most = size < left ? size : left;

    memcpy(to, data, most);
    data += most;
    left -= most;
}

static uint64_t some(const uint64_t *from, size_t count, uint64_t otherwise)
{
    uint8_t which = byte();

    return count && which < 254 ? from[which % count] : otherwise;
}

static size_t name(char *to)
{
    uint8_t which = byte();
    size_t length = which < 192 ? strlen(NAMES[which % NAME_COUNT]) : (size_t)which - 192;

    if (which < 192)
        memcpy(to, NAMES[which % NAME_COUNT], length);
    else
        bytes(to, length);
    to[length] = '\0';
    return length + 1;
}

/* The kernel's side. */

static void know(uint64_t *known, size_t *count, uint64_t one)
{
    if (*count < KNOWN)
        known[(*count)++] = one;
}

static bool is_silent(uint32_t opcode)
{
    return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
}

static bool is_by_descriptor(uint32_t opcode)
{
    return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_RELEASE
           || opcode == FUSE_FSYNC || opcode == FUSE_FALLOCATE || opcode == FUSE_LSEEK
           || opcode == FUSE_COPY_FILE_RANGE;
}

/* Note a request that was made. */
static ssize_t send_request(char *request, size_t size)
{
    struct fuse_in_header *in = (void *)request;
    struct fuse_read_in *read_in = (void *)(in + 1);
    struct asked *one = &asked[asked_count++];

    in->unique = 2 * asked_count;
    *one = (struct asked){ .unique = in->unique, .opcode = in->opcode };
    if (size >= sizeof *in + sizeof *read_in)
        one->most = read_in->size;
    return (ssize_t)size;
}

static ssize_t random_request(char *request)
{
    struct fuse_in_header *in = (void *)request;
    char *at = request + sizeof *in;
    uint8_t opcode = byte(), shape, lie;
    size_t fixed, given, size;

    memset(request, 0, sizeof *in + 128);
    in->opcode = opcode % 56;
    in->nodeid = some(nodes, node_count, 0xdeadbeef);
    fixed = byte() % 32 * 4;
    given = byte() % 32 * 4;
    shape = byte();
    in->uid = in->gid = shape & 0x80 ? 1000 : 0;
    bytes(at, given < fixed ? given : fixed);
    if (is_by_descriptor(in->opcode)) {
        ((uint64_t *)at)[0] = some(handles, handle_count, BAD_DESCRIPTOR);
        if (in->opcode == FUSE_COPY_FILE_RANGE)
            ((uint64_t *)at)[3] = some(handles, handle_count, BAD_DESCRIPTOR);
    }
    at += fixed;
    for (unsigned names = shape % 4; names; names--)
        at += name(at);
    lie = byte();
    size = (size_t)(at - request);
    if (lie > 250 && size > sizeof *in + (lie & 3))
        size -= 1 + (lie & 3);
    in->len = (uint32_t)size;
    if (lie > 240 && lie <= 250)
        in->len += lie - 245u;
    return send_request(request, size);
}

/* At the end: release all files, and forget all nodes, last ones first. 0 when there are no more. */
static ssize_t last_request(char *request)
{
    struct fuse_in_header *in = (void *)request;
    size_t size = sizeof *in;

    asked_count = 0;
    memset(request, 0, 128);
    if (handle_count) {
        struct fuse_release_in *release = (void *)(in + 1);

        in->opcode = FUSE_RELEASE;
        release->fh = handles[--handle_count];
        size += sizeof *release;
    } else if (forgetting > UFS_ROOT_ID) {
        struct fuse_forget_in *forget = (void *)(in + 1);

        in->opcode = FUSE_FORGET;
        in->nodeid = forgetting;
        /* What was renamed may be older than the directory that it is in: so several times. */
        if (--forgetting == UFS_ROOT_ID && ++passes < DEPTH)
            forgetting = session.table.next_id - 1;
        forget->nlookup = UINT32_MAX;
        size += sizeof *forget;
    } else {
        return 0;
    }
    in->len = (uint32_t)size;
    return send_request(request, size);
}

static void drain_forwarded(void)
{
    char request[ROOM];
    const struct fuse_in_header *in = (const void *)request;

    while (recv(pyfuse3, request, sizeof request, MSG_DONTWAIT) >= (ssize_t)sizeof *in)
        for (size_t at = 0; at < asked_count; at++)
            if (asked[at].unique == in->unique)
                asked[at].forwarded = true;
}

ssize_t __real_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size)
{
    ssize_t length;

    if (fd != device)
        return __real_read(fd, buffer, size);
    drain_forwarded();
    if (poisoned)
        __asan_unpoison_memory_region(poisoned, poisoned_size);
    poisoned = NULL;
    length = letting_go ? last_request(buffer)
             : left && asked_count < REQUESTS ? random_request(buffer)
                                              : 0;
    if (!length) {
        errno = ENODEV;
        return -1;
    }
    poisoned = (char *)buffer + length;
    poisoned_size = size - (size_t)length < POISONED ? size - (size_t)length : POISONED;
    __asan_poison_memory_region(poisoned, poisoned_size);
    return length;
}

static void learn_listing(const char *payload, size_t size)
{
    const struct fuse_direntplus *entry;
    size_t at = 0, length;

    for (; at < size; at += length) {
        entry = (const void *)(payload + at);
        CHECK(size - at > FUSE_NAME_OFFSET_DIRENTPLUS);
        length = FUSE_DIRENTPLUS_SIZE(entry);
        CHECK(length <= size - at && entry->dirent.namelen);
        CHECK(!memchr(entry->dirent.name, '/', entry->dirent.namelen));
        if (entry->entry_out.nodeid)
            know(nodes, &node_count, entry->entry_out.nodeid);
    }
}

static void learn(const struct asked *one, const char *payload, size_t size)
{
    const struct fuse_entry_out *entry = (const void *)payload;
    const struct fuse_open_out *open = (const void *)payload;

    switch (one->opcode) {
    case FUSE_LOOKUP: case FUSE_MKNOD: case FUSE_MKDIR: case FUSE_SYMLINK: case FUSE_LINK:
        CHECK(size == sizeof *entry);
        if (entry->nodeid)
            know(nodes, &node_count, entry->nodeid);
        break;
    case FUSE_CREATE: case FUSE_TMPFILE:
        CHECK(size == sizeof *entry + sizeof *open);
        know(nodes, &node_count, entry->nodeid);
        open = (const void *)(entry + 1);
        know(handles, &handle_count, open->fh);
        break;
    case FUSE_OPEN:
        CHECK(size == sizeof *open);
        know(handles, &handle_count, open->fh);
        break;
    case FUSE_READDIRPLUS:
        CHECK(size <= one->most);
        learn_listing(payload, size);
        break;
    case FUSE_READ: case FUSE_READDIR:
        CHECK(size <= one->most);
        break;
    }
}

static ssize_t receive(const struct iovec *parts, int count)
{
    static char reply[1 << 21];
    const struct fuse_out_header *out = (const void *)reply;
    size_t size = 0;

    for (int at = 0; at < count; at++) {
        memcpy(reply + size, parts[at].iov_base, parts[at].iov_len);
        size += parts[at].iov_len;
    }
    CHECK(size >= sizeof *out && out->len == size);
    if (!out->unique) {
        CHECK(out->error > 0);
        errno = ENOENT;
        return -1;
    }
    for (size_t at = 0; at < asked_count; at++)
        if (asked[at].unique == out->unique) {
            asked[at].answers++;
            CHECK(!is_silent(asked[at].opcode) || size == sizeof *out);
            CHECK(out->error <= 0 && out->error > -512);
            CHECK(!out->error || size == sizeof *out);
            if (!out->error)
                learn(&asked[at], reply + sizeof *out, size - sizeof *out);
            return (ssize_t)size;
        }
    CHECK(!"a reply to no request");
    return -1;
}

ssize_t __real_write(int fd, const void *buffer, size_t size);
ssize_t __wrap_write(int fd, const void *buffer, size_t size)
{
    struct iovec part = { (void *)(uintptr_t)buffer, size };

    return fd == device ? receive(&part, 1) : __real_write(fd, buffer, size);
}

ssize_t __real_writev(int fd, const struct iovec *parts, int count);
ssize_t __wrap_writev(int fd, const struct iovec *parts, int count)
{
    return fd == device ? receive(parts, count) : __real_writev(fd, parts, count);
}

/* Passthrough: every file is given an ID. */
int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    static int backing;

    return fd == device ? ++backing : __real_ioctl(fd, request, argument);
}

/* Python's side. */

static int64_t ask(void *context, uint64_t parent, const char *text)
{
    struct ufs_node *directory = ufs_node(&session.table, parent), *node;
    char buffer[UFS_PATH_SIZE], *path = ufs_upper_path(directory, text, buffer);
    struct stat status;

    (void)context;
    if (!session.table.has_upper || !(directory->flags & UFS_UPPER) || !path
        || fstatat(layer_fds[0], path, &status, AT_SYMLINK_NOFOLLOW))
        return -EIO;
    node = ufs_child(&session.table, directory, text);
    if (!node) {
        node = ufs_new_node(&session.table, IFTODT(status.st_mode));
        CHECK(node && !ufs_bind(&session.table, node, directory, text));
    }
    node->flags |= UFS_UPPER;
    node->flags &= (uint16_t)~UFS_STALE;
    node->device = status.st_dev;
    node->inode = node->number = status.st_ino;
    node->lookups++;
    return (int64_t)node->id;
}

static int copy_up(void *context, uint64_t id)
{
    struct ufs_node *directory = ufs_node(&session.table, id);
    char buffer[UFS_PATH_SIZE], *path;
    int failed = 0;

    if (directory->flags & UFS_UPPER)
        return 0;
    if (ufs_is_removed(directory))
        return -ENOENT;
    failed = copy_up(context, directory->names->parent->id);
    path = ufs_upper_path(directory, NULL, buffer);
    if (!failed && (!path || mkdirat(layer_fds[0], path, 0777)))
        failed = -errno;
    if (!failed)
        directory->flags |= UFS_UPPER;
    return failed;
}

/* The layers. */

static void clear(int directory)
{
    int fd = dup(directory);
    DIR *stream = fdopendir(fd);
    struct dirent *entry;
    int below;

    rewinddir(stream);
    while ((entry = readdir(stream))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (!unlinkat(fd, entry->d_name, 0))
            continue;
        below = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        CHECK(below != -1);
        clear(below);
        close(below);
        CHECK(!unlinkat(fd, entry->d_name, AT_REMOVEDIR));
    }
    closedir(stream);
}

static void make_file(int layer, const char *path, size_t size)
{
    static char zeros[1 << 15];
    int fd = openat(layer, path, O_WRONLY | O_CREAT, 0644);

    CHECK(fd != -1 && __real_write(fd, zeros, size) == (ssize_t)size);
    close(fd);
}

static void make_lower(int layer)
{
    make_file(layer, "a", 1);
    make_file(layer, "large", 1 << 15);
    CHECK(!mkdirat(layer, "d", 0755));
    make_file(layer, "d/a", 5);
    make_file(layer, "d/b", 0);
    CHECK(!mkdirat(layer, "d2", 0755) && !mkdirat(layer, "d2/d", 0755));
    make_file(layer, "d2/d/.wh.a", 0);
    CHECK(!symlinkat("a", layer, "link") && !mknodat(layer, "fifo", S_IFIFO | 0644, 0));
    make_file(layer, "hard1", 3);
    CHECK(!linkat(layer, "hard1", layer, "hard2", 0));
    CHECK(!mkdirat(layer, "opaque", 0755) && !mkdirat(layer, "moved", 0755));
    make_file(layer, "opaque/a", 2);
}

static void set(const char *layer, const char *directory, const char *mark, const char *value)
{
    char path[256];

    snprintf(path, sizeof path, "%s/%s/%s", BASE, layer, directory);
    CHECK(!setxattr(path, mark, value, strlen(value), 0));
}

/* Buffers are large, and few. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "quarantine_size_mb=8:thread_local_quarantine_size_kb=64";
}

int LLVMFuzzerInitialize(int *count, char ***arguments);
int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    static const char *const layers[LAYERS] = { "upper", "top", "bottom" };
    char path[PATH_MAX];

    (void)count;
    (void)arguments;
    /* Whatever is found: nothing can be written but what is below here, where the inputs are. */
    CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    CHECK(getcwd(path, sizeof path) && !mount(".", path, NULL, MS_BIND, NULL) && !chdir(path));
    CHECK(!mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
    CHECK(!mount("tmpfs", BASE, "tmpfs", MS_NODEV | MS_NOSUID, "size=64m"));
    umask(0);
    for (int layer = 0; layer < LAYERS; layer++) {
        snprintf(path, sizeof path, "%s/%s", BASE, layers[layer]);
        CHECK(!mkdir(path, 0777));
        layer_fds[layer] = open(path, O_PATH | O_DIRECTORY);
        if (layer)
            make_lower(layer_fds[layer]);
    }
    CHECK(!mknodat(layer_fds[1], "hidden", S_IFCHR, 0));
    make_file(layer_fds[2], "hidden", 1);
    set("top", "opaque", "trusted.overlay.opaque", "y");
    set("top", "moved", "trusted.overlay.redirect", "d");
    set("bottom", "d/a", "user.a", "value");
    snprintf(path, sizeof path, "%s/work", BASE);
    CHECK(!mkdir(path, 0777));
    work_fd = open(path, O_RDONLY | O_DIRECTORY);
    device = open("/dev/null", O_RDWR);
    CHECK(device != -1 && work_fd != -1);
    return 0;
}

static void make_session(uint8_t options)
{
    bool has_upper = !(options & 1);
    struct ufs_table *table = &session.table;
    struct ufs_node *root;
    struct stat status;

    memset(&session, 0, sizeof session);
    CHECK(!ufs_table_init(table));
    memset(table->key, 1, sizeof table->key);
    table->layer_count = LAYERS - !has_upper;
    table->layers = calloc(table->layer_count, sizeof *table->layers);
    table->filesystems = calloc(1, sizeof *table->filesystems);
    CHECK(table->layers && table->filesystems && !fstat(layer_fds[0], &status));
    for (size_t at = 0; at < table->layer_count; at++)
        table->layers[at] = (struct ufs_layer){ layer_fds[at + !has_upper], status.st_dev, { 0 } };
    table->filesystem_count = 1;
    table->filesystems->device = status.st_dev;
    table->filesystems->most = UINT64_MAX;
    table->filesystems->root = work_fd;
    table->has_upper = has_upper;
    table->work = has_upper ? work_fd : -1;
    table->durable = options & 2;
    table->redirects = options & 32;
    strcpy(table->prefix, "trusted.overlay.");
    root = ufs_new_node(table, DT_DIR);
    root->flags = has_upper ? UFS_UPPER : 0;
    root->lower_count = LAYERS - 1;
    root->lower = calloc(LAYERS - 1, sizeof *root->lower);
    for (uint16_t at = 0; at < LAYERS - 1; at++)
        root->lower[at] = (struct ufs_place){ strdup(""), (uint16_t)(at + has_upper) };
    session.passthrough = options & 4;
    session.writeback = options & 8;
    session.xattrs = !(options & 16);
    session.syncs = options & 2;
    session.seconds = 1;
    session.asked = (struct ufs_asked){ ask, copy_up, NULL };
    pthread_mutex_init(&session.pending_lock, NULL);
    pthread_mutex_init(&session.leading, NULL);
    session.device = device;
}

/* Whether Python may hand a request back. */
static bool may_come_back(uint32_t opcode)
{
    return opcode == FUSE_OPEN || opcode == FUSE_SETATTR || opcode == FUSE_CREATE;
}

/* In pyfuse3's place: refuse what was forwarded, or hand it back. */
static void answer_forwarded(uint8_t how)
{
    struct fuse_out_header out = { .len = sizeof out };

    for (size_t at = 0; at < asked_count; at++)
        if (asked[at].forwarded) {
            out.unique = asked[at].unique;
            out.error = (how >> (at % 8)) & 1 && may_come_back(asked[at].opcode) ? -UFS_REDO
                                                                                 : -ENOSYS;
            CHECK(send(pyfuse3, &out, sizeof out, 0) == sizeof out);
        }
    shutdown(pyfuse3, SHUT_WR);
    ufs_carry(&session);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct ufs_table *table = &session.table;
    int pair[2];

    if (size < 2)
        return 0;
    data = input + 2;
    left = size - 2;
    asked_count = handle_count = 0;
    nodes[0] = UFS_ROOT_ID;
    node_count = 1;
    letting_go = false;
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    pyfuse3 = pair[1];
    make_session(input[0]);
    session.socket = pair[0];
    CHECK(!ufs_serve(&session));
    answer_forwarded(input[1]);
    for (size_t at = 0; at < asked_count; at++)
        CHECK(is_silent(asked[at].opcode) || asked[at].answers == 1);
    if (handle_count < KNOWN) {
        letting_go = true;
        passes = 0;
        forgetting = table->next_id - 1;
        CHECK(!ufs_serve(&session));
        CHECK(table->node_count == 1 && !table->name_count);
        for (int fd = 0; fd < table->file_room; fd++)
            CHECK(!table->files[fd].node);
    }
    ufs_forget_pending(&session);
    ufs_table_free(table);
    close(pair[0]);
    close(pair[1]);
    clear(layer_fds[0]);
    clear(work_fd);
    return 0;
}
