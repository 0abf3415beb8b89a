#define _GNU_SOURCE
#include "ufs_directories.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_listing.h"

enum { UFS_SETTLED = 10 }; /* seconds in which whoever reads a directory has got what we sent */

enum { UFS_DOT = 1, UFS_DOT_DOT = 2, UFS_FIRST_OFFSET = 3 };

static uint64_t offset_of(uint64_t hash)
{
    return (hash >> 1) < UFS_FIRST_OFFSET ? UFS_FIRST_OFFSET : hash >> 1;
}

/* The room for one more name in the reply, or NULL where it is full. */
static struct fuse_dirent *dirent_room(struct ufs_turn *turn, size_t most, size_t length, bool plus,
                                       struct fuse_entry_out **entry)
{
    size_t head = (plus ? sizeof **entry : 0) + FUSE_NAME_OFFSET;
    size_t size = FUSE_DIRENT_ALIGN(head + length);
    char *place = turn->reply + turn->length;

    if (turn->length + size > most)
        return NULL;
    ufs_room(turn, size);
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
static int list_name(struct ufs_turn *turn, struct ufs_node *directory, const char *name,
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
        found = ufs_read_status(turn, node, &status) ? UFS_ABSENT : UFS_FOUND;
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
        ufs_fill_entry(turn, node, &status, out);
    else
        ufs_drop_unused(turn->table, node);
    return 0;
}

static int list_dots(struct ufs_turn *turn, const struct ufs_node *directory, uint64_t offset,
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

static int list_names(struct ufs_turn *turn, struct ufs_node *directory, uint64_t offset,
                      size_t most, bool plus)
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
static void finish_listing(struct ufs_turn *turn, struct ufs_node *directory)
{
    ufs_drop_names_above(directory);
    turn->names = ufs_now() - directory->changed < UFS_SETTLED;
    if (turn->names)
        turn->invalid = directory->id;
}

static int read_directory(struct ufs_turn *turn, bool plus)
{
    const struct fuse_read_in *in = turn->argument;
    size_t most = in->size < UFS_DATA_SIZE ? in->size : UFS_DATA_SIZE;
    struct ufs_node *directory;
    int listed = ufs_at_directory(turn, &directory);

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

int ufs_on_readdir(struct ufs_turn *turn)
{
    return read_directory(turn, false);
}

int ufs_on_readdirplus(struct ufs_turn *turn)
{
    return read_directory(turn, true);
}

/* May take long, so it keeps the lock no longer than it needs a path. */
int ufs_on_fsyncdir(struct ufs_turn *turn)
{
    char buffer[UFS_PATH_SIZE], *path = NULL;
    struct ufs_node *node;
    int fd, failed;

    ufs_step_aside(turn);
    pthread_mutex_lock(&turn->table->lock);
    failed = ufs_at_node(turn, &node);
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
