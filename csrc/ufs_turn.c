#define _GNU_SOURCE
#include "ufs_turn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "ufs_copyup.h"
#include "ufs_fileattr.h"

void *ufs_room(struct ufs_turn *turn, size_t size)
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

/* Let the kernel know of owners without a number: it refuses to change the file. */
static void unmap(const struct ufs_turn *turn, const struct ufs_node *node,
                  const struct stat *status, struct fuse_attr *attr)
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

void ufs_fill_attributes(const struct ufs_turn *turn, const struct ufs_node *node,
                         const struct stat *status, struct fuse_attr *attr)
{
    const struct ufs_session *session = turn->session;
    bool one_link = node->type == DT_DIR && (session->static_nlink || ufs_is_merged(node));

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
        .nlink = one_link ? 1 : (uint32_t)status->st_nlink,
        .uid = ufs_shown(&session->users, status->st_uid),
        .gid = ufs_shown(&session->groups, status->st_gid),
        .rdev = encoded_device(status->st_rdev),
        .blksize = (uint32_t)status->st_blksize,
    };
    if (turn->table->idmapped)
        unmap(turn, node, status, attr);
}

int ufs_read_status(const struct ufs_turn *turn, const struct ufs_node *node, struct stat *status)
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

void ufs_fill_entry(struct ufs_turn *turn, struct ufs_node *node, const struct stat *status,
                    struct fuse_entry_out *entry)
{
    const struct ufs_session *session = turn->session;

    entry->nodeid = node->id;
    entry->entry_valid = entry->attr_valid = session->seconds;
    entry->entry_valid_nsec = entry->attr_valid_nsec = session->nanoseconds;
    ufs_fill_attributes(turn, node, status, &entry->attr);
    node->lookups++;
}

int ufs_tell(struct ufs_turn *turn, struct ufs_node *node, const struct stat *status)
{
    ufs_fill_entry(turn, node, status, ufs_room(turn, sizeof(struct fuse_entry_out)));
    return 0;
}

int ufs_tell_attributes(struct ufs_turn *turn, const struct ufs_node *node)
{
    struct fuse_attr_out *out = ufs_room(turn, sizeof *out);
    struct stat status;
    int failed = ufs_read_status(turn, node, &status);

    if (failed)
        return failed;
    out->attr_valid = turn->session->seconds;
    out->attr_valid_nsec = turn->session->nanoseconds;
    ufs_fill_attributes(turn, node, &status, &out->attr);
    return 0;
}

/* Look a node up again whose places have changed. */
static int refresh(const struct ufs_turn *turn, struct ufs_node *node)
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

int ufs_at_node(const struct ufs_turn *turn, struct ufs_node **node)
{
    *node = ufs_node(turn->table, turn->in->nodeid);
    return *node ? refresh(turn, *node) : -ESTALE;
}

int ufs_at_directory(const struct ufs_turn *turn, struct ufs_node **directory)
{
    int failed = ufs_at_node(turn, directory);

    return failed ? failed : (*directory)->type == DT_DIR ? 0 : -ENOTDIR;
}

int ufs_refuse(const struct ufs_turn *turn, struct ufs_node *node, unsigned flags)
{
    int failed = refresh(turn, node);

    return failed ? failed : ufs_guards(turn->table, node) & flags ? -EPERM : 0;
}

void ufs_step_aside(struct ufs_turn *turn)
{
    if (turn->leads)
        pthread_mutex_unlock(&turn->session->leading);
    turn->leads = false;
}

int ufs_note_impure(const struct ufs_turn *turn, struct ufs_node *directory)
{
    if (directory->flags & UFS_IMPURE)
        return 0;
    /* What Python knows of it is not ours to change. */
    return directory->flags & UFS_PINNED ? UFS_FORWARD : ufs_set_impure(turn->table, directory);
}

/* Make upper hold a directory whose parent it holds: 0, or what to return. Keeps the lock: it is
 * quick, and others may be about to look names up in it. */
static int copy_up_directory(const struct ufs_turn *turn, struct ufs_node *directory)
{
    const struct ufs_asked *asked = &turn->session->asked;
    struct ufs_table *table = turn->table;
    struct ufs_copy copy;
    int planned = directory->flags & UFS_PINNED ? 0 : ufs_plan_copy(table, directory, &copy), failed;

    if (planned < 0)
        return planned;
    failed = planned ? ufs_note_impure(turn, directory->names->parent) : UFS_FORWARD;
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
static int copy_up_parents(const struct ufs_turn *turn, const struct ufs_node *node)
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

int ufs_copy_up(struct ufs_turn *turn, struct ufs_node *node, uint64_t size)
{
    struct ufs_table *table = turn->table;
    struct ufs_copy copy;
    int planned, failed;

    while (node->flags & UFS_COPYING) {
        ufs_step_aside(turn);
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
    failed = ufs_note_impure(turn, node->names->parent);
    if (failed)
        return failed;
    node->flags |= UFS_COPYING;
    ufs_step_aside(turn);
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

void ufs_keep_last(struct ufs_node *node, const struct stat *status, nlink_t links)
{
    free(node->last);
    node->last = malloc(sizeof *node->last);
    if (!node->last)
        return;
    *node->last = *status;
    node->last->st_nlink = links;
}
