#define _GNU_SOURCE
#include "ufs_moves.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ufs_copyup.h"
#include "ufs_marks.h"
#include "ufs_names.h"

static int refuse_removal(const struct ufs_turn *turn, struct ufs_node *parent,
                          struct ufs_node *node)
{
    int failed = ufs_refuse(turn, parent, UFS_GUARDS);

    return failed ? failed : ufs_refuse(turn, node, UFS_GUARDS);
}

/* A node of upper at a name of a directory of upper: 0, or what to return. status: its. */
static int plain(struct ufs_turn *turn, struct ufs_node *parent, const char *name,
                 struct ufs_node **node, char buffer[UFS_PATH_SIZE], char **path,
                 struct stat *status)
{
    bool filled;
    int found;

    if (!(parent->flags & UFS_UPPER) || ufs_is_removed(parent) || ufs_is_for_python(name))
        return UFS_FORWARD;
    found = ufs_find(turn->table, &turn->session->asked, parent, name, node, status, &filled);
    if (found != UFS_FOUND)
        return found < 0 ? found : -ENOENT;
    if (!((*node)->flags & UFS_UPPER) || (*node)->flags & UFS_BUSY)
        return UFS_FORWARD;
    *path = ufs_upper_path(parent, name, buffer);
    if (!*path || fstatat(turn->table->layers[0].fd, *path, status, AT_SYMLINK_NOFOLLOW))
        return -errno;
    return status->st_nlink > 1 && !S_ISDIR(status->st_mode) ? UFS_FORWARD : 0;
}

/* Before a node may lose its last name: 0, or -1 with errno. */
static int keep_idle(const struct ufs_turn *turn, struct ufs_node *node)
{
    return node->open && node->open->idle && ufs_wake_idle(turn->table, node) == -1 ? -1 : 0;
}

/* Hide a file of lower layers alone: there is nothing in upper, so its whiteout is made there. */
static int cover(struct ufs_turn *turn, struct ufs_node *parent, struct ufs_node *node,
                 const char *name)
{
    char buffer[UFS_PATH_SIZE], *path = ufs_upper_path(parent, name, buffer);
    struct stat status;
    int failed;

    failed = path ? ufs_read_status(turn, node, &status) : -errno;
    if (failed)
        return failed;
    if (keep_idle(turn, node))
        return -errno;
    /* What is there, or where nobody may make devices: for Python. */
    if (mknodat(turn->table->layers[0].fd, path, S_IFCHR, 0))
        return errno == EEXIST || errno == EPERM ? UFS_FORWARD : -errno;
    ufs_keep_last(node, &status, status.st_nlink - 1);
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

static int remove_name(struct ufs_turn *turn, bool directory)
{
    char buffer[UFS_PATH_SIZE], *path;
    const char *name = turn->argument;
    struct ufs_node *parent, *node;
    struct stat status;
    int failed = ufs_at_directory(turn, &parent), below;

    if (!failed && !directory && !ufs_is_removed(parent)) {
        node = ufs_child(turn->table, parent, name);
        if (node && !(node->flags & (UFS_UPPER | UFS_BUSY | UFS_STALE)) && node->type != DT_DIR) {
            failed = refuse_removal(turn, parent, node);
            if (!failed)
                failed = ufs_copy_up(turn, parent, 0);
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
    if (directory != (node->type == DT_DIR) || node->lower_count || (below && directory))
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
    ufs_keep_last(node, &status, 0);
    ufs_forget_names_above(parent);
    ufs_unbind(turn->table, parent, name);
    return 0;
}

int ufs_on_unlink(struct ufs_turn *turn)
{
    return remove_name(turn, false);
}

int ufs_on_rmdir(struct ufs_turn *turn)
{
    return remove_name(turn, true);
}

/* Whether the flags of files, or of what they lie in, forbid a rename: 0, or what to return. */
static int refuse_rename(const struct ufs_turn *turn, struct ufs_node *old_parent,
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
    if (new)
        return refuse_removal(turn, new_parent, new);
    return ufs_refuse(turn, new_parent, FS_IMMUTABLE_FL);
}

/* Before a rename: make upper hold what has that name, and the directory that it goes to. 0, or what
 * to return. */
static int prepare_rename(struct ufs_turn *turn, struct ufs_node *parent, const char *name,
                          struct ufs_node *new_parent, const char *new_name)
{
    struct ufs_node *node = ufs_child(turn->table, parent, name);
    int failed;

    if (!node || node->flags & UFS_STALE)
        return new_parent->flags & UFS_UPPER ? 0 : UFS_FORWARD;
    /* Python copies all that is in it, or refuses. */
    if (node->type == DT_DIR && ((node->lower_count && !turn->table->redirects)
                                 || ufs_child(turn->table, new_parent, new_name)))
        return UFS_FORWARD;
    failed = ufs_copy_up(turn, node, UINT64_MAX);
    return failed ? failed : ufs_copy_up(turn, new_parent, 0);
}

/* What the new name of a rename shows before. */
struct replaced {
    struct ufs_node *node; /* NULL: nothing */
    struct stat status;    /* its */
    bool whiteout;         /* upper hides it already */
};

/* 0, or what to return. */
static int plan_replacing(struct ufs_turn *turn, struct ufs_node *parent, const char *name,
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
            return node ? UFS_FORWARD : 0;
        return node && S_ISREG(status->st_mode) && status->st_nlink == 1 ? 0 : UFS_FORWARD;
    }
    if (errno != ENOENT)
        return -errno;
    below = ufs_exists_below(turn->table, parent, name);
    if (below == -1)
        return -errno;
    if (!node)
        return below ? UFS_FORWARD : 0;
    return below ? ufs_read_status(turn, node, status) : UFS_FORWARD;
}

/* Rename within upper, leaving a whiteout where the old name would show a lower file: 0, or what to
 * return. */
static int rename_upper(const struct ufs_turn *turn, const char *old_path, const char *new_path,
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

/* Where the lower layers hold a directory, as changes._redirect: its length, 0 where its mark says so
 * already, or -1 where it is too long for one. It ends where the buffer ends. */
static ssize_t redirect_of(const struct ufs_node *node, bool same_directory,
                           char buffer[UFS_REDIRECT_MAX + 1])
{
    size_t at = UFS_REDIRECT_MAX, length;
    const char *part;

    if (node->redirect && (same_directory || *node->redirect == '/'))
        return 0;
    buffer[at] = '\0';
    for (; node->names; node = node->names->parent) {
        part = node->redirect ? node->redirect : node->names->text;
        length = strlen(part);
        if (length + 1 > at)
            return -1;
        at -= length;
        memcpy(buffer + at, part, length);
        if (same_directory || *part == '/')
            break;
        buffer[--at] = '/';
    }
    return (ssize_t)(UFS_REDIRECT_MAX - at);
}

/* Let a directory of upper find what is below it, and nothing else, under its new name: 0, or what to
 * return. */
static int keep_apart(const struct ufs_table *table, struct ufs_node *node,
                      const struct ufs_node *parent, const char *path, bool same_directory)
{
    char buffer[UFS_REDIRECT_MAX + 1], *text;
    int upper = table->layers[0].fd;
    ssize_t length;

    if (!node->lower_count) {
        if (node->flags & UFS_OPAQUE || !ufs_is_merged(parent))
            return 0;
        if (ufs_set_mark(table, upper, path, UFS_MARK_OPAQUE))
            return errno == ENAMETOOLONG ? UFS_FORWARD : -errno;
        node->flags |= UFS_OPAQUE;
        return 0;
    }
    length = redirect_of(node, same_directory, buffer);
    if (length < 1)
        return length ? UFS_FORWARD : 0;
    text = strdup(buffer + UFS_REDIRECT_MAX - length);
    if (!text)
        return -ENOMEM;
    if (ufs_set_text(table, upper, path, UFS_MARK_REDIRECT, text)) {
        free(text);
        return errno == ENAMETOOLONG ? UFS_FORWARD : -errno;
    }
    free(node->redirect);
    node->redirect = text;
    return 0;
}

/* Rename what does not take the place of a directory. */
static int rename_plain(struct ufs_turn *turn, uint64_t new_parent_id, uint32_t flags,
                        const char *old_name)
{
    const char *new_name = old_name + strlen(old_name) + 1;
    char old_buffer[UFS_PATH_SIZE], new_buffer[UFS_PATH_SIZE], *old_path, *new_path;
    struct ufs_node *old_parent, *new_parent, *old;
    struct ufs_table *table = turn->table;
    struct replaced replaced;
    struct stat status;
    int failed, below;

    failed = ufs_at_directory(turn, &old_parent);
    if (failed)
        return failed;
    new_parent = ufs_node(table, new_parent_id);
    if (!new_parent || new_parent->type != DT_DIR)
        return -ESTALE;
    if (flags & ~(uint32_t)RENAME_NOREPLACE || ufs_is_for_python(new_name)
        || ufs_is_removed(new_parent))
        return UFS_FORWARD;
    failed = refuse_rename(turn, old_parent, old_name, new_parent, new_name);
    if (!failed)
        failed = prepare_rename(turn, old_parent, old_name, new_parent, new_name);
    if (!failed)
        failed = plain(turn, old_parent, old_name, &old, old_buffer, &old_path, &status);
    if (failed)
        return failed;
    below = ufs_exists_below(table, old_parent, old_name);
    if (below == -1)
        return -errno;
    new_path = ufs_upper_path(new_parent, new_name, new_buffer);
    if (!new_path)
        return -errno;
    failed = plan_replacing(turn, new_parent, new_name, new_path, old, &replaced);
    if (failed)
        return failed;
    if (replaced.node && (flags & RENAME_NOREPLACE || keep_idle(turn, replaced.node)))
        return UFS_FORWARD;
    if (replaced.whiteout && old->type == DT_DIR && !below)
        return UFS_FORWARD; /* which puts it away */
    if ((old->flags & UFS_ORIGIN || old->lower_count) && old_parent != new_parent)
        failed = ufs_note_impure(turn, new_parent);
    if (!failed && old->type == DT_DIR)
        failed = keep_apart(table, old, new_parent, old_path, old_parent == new_parent);
    if (!failed)
        failed = rename_upper(turn, old_path, new_path, below, replaced.whiteout, flags);
    if (failed)
        return failed;
    ufs_forget_names_above(old_parent);
    ufs_forget_names_above(new_parent);
    old->lookups++; /* it has no name for a moment */
    ufs_unbind(table, old_parent, old_name);
    if (replaced.node) {
        ufs_keep_last(replaced.node, &replaced.status, replaced.status.st_nlink - 1);
        ufs_unbind(table, new_parent, new_name);
    }
    failed = ufs_bind(table, old, new_parent, new_name) ? -ENOMEM : 0;
    old->lookups--;
    return failed;
}

int ufs_on_rename(struct ufs_turn *turn)
{
    const struct fuse_rename_in *in = turn->argument;

    return rename_plain(turn, in->newdir, 0, (const char *)(in + 1));
}

int ufs_on_rename2(struct ufs_turn *turn)
{
    const struct fuse_rename2_in *in = turn->argument;

    return rename_plain(turn, in->newdir, in->flags, (const char *)(in + 1));
}
