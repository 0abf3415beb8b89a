#define _GNU_SOURCE
#include "ufs_find.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "ufs_calls.h"
#include "ufs_listing.h"
#include "ufs_marks.h"

enum { UFS_MARK_SIZE = 256, UFS_ATTRIBUTE_BLOCKS = 8, UFS_BLOCK = 512 };

/* What a search finds: the facts of a node. */
struct facts {
    struct stat status; /* of what answers */
    dev_t device;
    ino_t inode;
    struct ufs_place *lower; /* owned */
    unsigned lower_count, flags, layer;
};

static void free_facts(struct facts *facts)
{
    for (unsigned at = 0; at < facts->lower_count; at++)
        free(facts->lower[at].path);
    free(facts->lower);
}

static int read_below(struct ufs_table *table, struct ufs_node *directory)
{
    if (!directory->below && directory->lower_count)
        directory->below = ufs_list_lower(table, directory);
    return directory->below || !directory->lower_count ? 0 : -1;
}

static const struct ufs_entry *below(const struct ufs_table *table,
                                     const struct ufs_node *directory, const char *name)
{
    return directory->below ? ufs_listed(directory->below, name, ufs_hash(table, name)) : NULL;
}

int ufs_exists_below(struct ufs_table *table, struct ufs_node *parent, const char *name)
{
    if (read_below(table, parent))
        return -1;
    return below(table, parent, name) != NULL;
}

/* Whether upper's directory holds AUFS' whiteouts; none can be made while we have it. */
static int aufs_above(const struct ufs_table *table, struct ufs_node *directory)
{
    struct ufs_listing *listing;

    if (directory->flags & UFS_AUFS_KNOWN)
        return !!(directory->flags & UFS_AUFS);
    listing = ufs_list_upper(table, directory);
    if (!listing)
        return -1;
    for (size_t at = 0; at < listing->count; at++)
        /* 0: what hides is a name of AUFS, not a whiteout in the name's own place */
        if (listing->entries[at].type == DT_WHT && !listing->entries[at].inode)
            directory->flags |= UFS_AUFS;
    directory->flags |= UFS_AUFS_KNOWN;
    ufs_free_listing(listing);
    return !!(directory->flags & UFS_AUFS);
}

/* As markers.lacks_data. */
static bool lacks_data(const struct ufs_table *table, int fd, const char *path,
                       const struct stat *status)
{
    return S_ISREG(status->st_mode)
           && (status->st_blocks <= UFS_ATTRIBUTE_BLOCKS
               || status->st_blocks * UFS_BLOCK < status->st_size)
           && ufs_has_mark(table, fd, path, UFS_MARK_METACOPY);
}

static bool exists(int fd, const char *directory, const char *name)
{
    char path[UFS_PATH_SIZE];
    struct stat status;
    size_t length = strlen(directory);

    if (length + strlen(name) + 2 > sizeof path)
        return false;
    memcpy(path, directory, length);
    path[length] = '/';
    strcpy(path + length + 1, name);
    return !fstatat(fd, path, &status, AT_SYMLINK_NOFOLLOW);
}

/* The marks of a directory: 1 opaque, 0 not, UFS_ASK for what Python has to read. */
static int read_opaque(const struct ufs_table *table, int fd, const char *path)
{
    char value;

    if (ufs_has_mark(table, fd, path, UFS_MARK_REDIRECT))
        return UFS_ASK;
    return ufs_opaque(table, fd, path) == 'y' || exists(fd, path, UFS_AUFS_OPAQUE)
           || ufs_get_xattr(fd, path, UFS_FUSE_OVERLAYFS UFS_MARK_OPAQUE, &value, 1) == 1;
}

/* The same of a lower directory, from the layer's index if it has one; or -errno. */
static int read_lower_opaque(const struct ufs_table *table, const struct ufs_layer *layer,
                             const char *path)
{
    struct ufs_indexed directory;

    if (!layer->index.data)
        return read_opaque(table, layer->fd, path);
    if (!ufs_index_directory(&layer->index, path, strlen(path), &directory))
        return -ENOENT;
    if (directory.marks & UFS_INDEX_REDIRECT)
        return UFS_ASK;
    return !!(directory.marks & UFS_INDEX_OPAQUE);
}

/* The status of what a lower layer holds, from its index if it has one: UFS_FOUND, UFS_ASK where
 * that has no data of its own, or -errno. */
static int read_lower(const struct ufs_table *table, const struct ufs_layer *layer,
                      const char *path, struct stat *status)
{
    struct ufs_indexed entry;

    if (!layer->index.data) {
        if (fstatat(layer->fd, path, status, AT_SYMLINK_NOFOLLOW))
            return -errno;
        return lacks_data(table, layer->fd, path, status) ? UFS_ASK : UFS_FOUND;
    }
    if (!ufs_index_find(&layer->index, path, &entry))
        return -ENOENT;
    *status = entry.status;
    status->st_dev = layer->device;
    return entry.marks & UFS_INDEX_METACOPY ? UFS_ASK : UFS_FOUND;
}

/* The lower places of a directory's child that is one: 0, UFS_ASK, or -errno. */
static int find_lower_directory(struct ufs_table *table, const struct ufs_node *parent,
                                const struct ufs_entry *entry, const char *name,
                                struct facts *facts)
{
    const struct ufs_link *links = parent->below->links;
    const struct ufs_place *place;
    unsigned count = 1, at = entry->place;
    int32_t more;
    char buffer[UFS_PATH_SIZE], *path;
    int opaque;

    for (more = entry->more; more != -1; more = links[more].next)
        count++;
    facts->lower = calloc(count, sizeof *facts->lower);
    if (!facts->lower)
        return -ENOMEM;
    for (more = entry->more; facts->lower_count < count; at = links[more].place,
        more = links[more].next) {
        place = &parent->lower[at];
        path = ufs_lower_path(place, name, buffer);
        if (!path)
            return -errno;
        facts->lower[facts->lower_count].layer = place->layer;
        facts->lower[facts->lower_count].path = strdup(path);
        if (!facts->lower[facts->lower_count].path)
            return -ENOMEM;
        facts->lower_count++;
        if (more == -1 && place->layer + 1u >= table->layer_count)
            break; /* nothing can lie below */
        opaque = read_lower_opaque(table, &table->layers[place->layer], path);
        if (opaque == UFS_ASK || opaque < 0)
            return opaque;
        if (opaque || more == -1)
            break;
    }
    return 0;
}

static int find_lower(struct ufs_table *table, const struct ufs_node *parent,
                      const struct ufs_entry *entry, const char *name, struct facts *facts)
{
    const struct ufs_place *place = &parent->lower[entry->place];
    char buffer[UFS_PATH_SIZE], *path = ufs_lower_path(place, name, buffer);
    int found, failed;

    if (!path)
        return -errno;
    found = read_lower(table, &table->layers[place->layer], path, &facts->status);
    if (found < 0)
        return found;
    facts->device = facts->status.st_dev;
    facts->inode = facts->status.st_ino;
    facts->layer = place->layer;
    if (S_ISDIR(facts->status.st_mode)) {
        failed = find_lower_directory(table, parent, entry, name, facts);
        return failed ? failed : UFS_FOUND;
    }
    return found;
}

/* A file of upper that is no directory. */
static int find_upper_file(struct ufs_table *table, const struct ufs_node *parent,
                           const char *path, struct facts *facts)
{
    int fd = table->layers[0].fd, told;
    struct stat lower;
    char mark[UFS_MARK_SIZE];
    ssize_t length;

    if (facts->status.st_nlink > 1 || lacks_data(table, fd, path, &facts->status))
        return UFS_ASK;
    if (!parent->lower_count && !(parent->flags & UFS_IMPURE))
        return UFS_FOUND;
    length = ufs_mark(table, fd, path, UFS_MARK_ORIGIN, mark, sizeof mark);
    told = length > 0 ? ufs_origin(table, mark, (size_t)length, &lower) : 0;
    if (told == -1)
        return -errno;
    /* of a lower file with several links, each may have been copied up by itself */
    if (told && lower.st_nlink == 1
        && (lower.st_ino != facts->inode || lower.st_dev != facts->device)) {
        facts->device = lower.st_dev;
        facts->inode = lower.st_ino;
        facts->flags |= UFS_ORIGIN;
    }
    return UFS_FOUND;
}

static int find_upper_directory(struct ufs_table *table, struct ufs_node *parent,
                                const char *path, const char *name, struct facts *facts)
{
    int fd = table->layers[0].fd, opaque = read_opaque(table, fd, path), found;
    const struct ufs_entry *entry;
    struct stat status = facts->status;

    if (opaque == UFS_ASK)
        return UFS_ASK;
    if (ufs_has_mark(table, fd, path, UFS_MARK_IMPURE))
        facts->flags |= UFS_IMPURE;
    if (opaque) {
        facts->flags |= UFS_OPAQUE;
        return UFS_FOUND;
    }
    entry = below(table, parent, name);
    if (!entry || entry->type != DT_DIR)
        return UFS_FOUND;
    found = find_lower(table, parent, entry, name, facts);
    facts->status = status;
    return found;
}

/* UFS_FOUND, UFS_ABSENT, UFS_ASK or -errno. */
static int search(struct ufs_table *table, struct ufs_node *parent, const char *name,
                  struct facts *facts)
{
    char buffer[UFS_PATH_SIZE], *path;
    const struct ufs_entry *entry;
    int fd = table->layers[0].fd, aufs;

    if (!strncmp(name, UFS_AUFS_PREFIX, sizeof UFS_AUFS_PREFIX - 1))
        return UFS_ABSENT;
    if (strlen(name) >= UFS_NAME_SIZE)
        return -ENAMETOOLONG;
    if (read_below(table, parent))
        return -errno;
    if (parent->flags & UFS_UPPER) {
        aufs = parent->lower_count ? aufs_above(table, parent) : 0;
        if (aufs)
            return aufs == -1 ? -errno : UFS_ASK;
        path = ufs_upper_path(parent, name, buffer);
        if (!path)
            return -errno;
        if (!fstatat(fd, path, &facts->status, AT_SYMLINK_NOFOLLOW)) {
            facts->flags = UFS_UPPER;
            facts->device = facts->status.st_dev;
            facts->inode = facts->status.st_ino;
            if (S_ISCHR(facts->status.st_mode) && !facts->status.st_rdev)
                return UFS_ABSENT;
            if (S_ISDIR(facts->status.st_mode))
                return find_upper_directory(table, parent, path, name, facts);
            if (S_ISREG(facts->status.st_mode) && !facts->status.st_size
                && ufs_has_mark(table, fd, path, UFS_MARK_WHITEOUT))
                return UFS_ASK;
            return find_upper_file(table, parent, path, facts);
        }
        if (errno != ENOENT)
            return -errno;
    }
    entry = below(table, parent, name);
    return entry ? find_lower(table, parent, entry, name, facts) : UFS_ABSENT;
}

/* Make a node what was found; the facts' places are its own afterwards. */
static bool settle(struct ufs_table *table, struct ufs_node *node, struct facts *facts)
{
    if (!ufs_number(table, facts->device, facts->inode, &node->number))
        return false;
    ufs_free_lower(node);
    free(node->redirect);
    node->redirect = NULL;
    node->device = facts->device;
    node->inode = facts->inode;
    node->lower = facts->lower;
    node->lower_count = (uint16_t)facts->lower_count;
    node->layer = (uint16_t)facts->layer;
    node->flags = (uint16_t)((node->flags & (UFS_BUSY | UFS_LINKED)) | facts->flags);
    facts->lower = NULL;
    facts->lower_count = 0;
    return true;
}

static int ask(struct ufs_table *table, const struct ufs_asked *asked,
               const struct ufs_node *parent, const char *name, struct ufs_node **node)
{
    int64_t id = asked->ask(asked->context, parent->id, name);

    if (id <= 0)
        return id ? (int)id : UFS_ABSENT;
    *node = ufs_node(table, (uint64_t)id);
    if (!*node)
        return -EIO;
    (*node)->lookups--; /* it was counted so that it stays */
    return UFS_FOUND;
}

int ufs_find(struct ufs_table *table, const struct ufs_asked *asked, struct ufs_node *parent,
             const char *name, struct ufs_node **node, struct stat *status, bool *filled)
{
    struct facts facts = { 0 };
    int found;

    *filled = false;
    *node = ufs_child(table, parent, name);
    if (*node && !((*node)->flags & UFS_STALE))
        return UFS_FOUND;
    found = search(table, parent, name, &facts);
    if (found == UFS_FOUND && *node) {
        found = settle(table, *node, &facts) ? UFS_FOUND : -ESTALE;
    } else if (found == UFS_FOUND) {
        *node = ufs_new_node(table, IFTODT(facts.status.st_mode));
        if (!*node || ufs_bind(table, *node, parent, name)) {
            found = -ENOMEM;
        } else if (!settle(table, *node, &facts)) {
            ufs_drop_unused(table, *node);
            found = UFS_ASK;
        }
    }
    if (found == UFS_FOUND) {
        *status = facts.status;
        *filled = true;
    }
    free_facts(&facts);
    return found == UFS_ASK ? ask(table, asked, parent, name, node) : found;
}
