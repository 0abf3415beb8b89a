#define _GNU_SOURCE
#include "ufs_listing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_marks.h"

enum { UFS_DENTS_SIZE = 32768, UFS_TYPE_AUFS = 100 };

/* All names as the places hold them, before they are merged. An AUFS whiteout has the name that
 * it hides, and the type UFS_TYPE_AUFS. */
struct raw {
    struct ufs_entry *entries;
    size_t count, room;
    char *names;
    size_t length, size;
};

static int add(struct raw *raw, const struct ufs_table *table, const char *name, unsigned type,
               ino_t inode, unsigned place)
{
    size_t size = strlen(name) + 1;
    void *grown;

    if (raw->count == raw->room) {
        raw->room = raw->room ? raw->room * 2 : 32;
        grown = realloc(raw->entries, raw->room * sizeof *raw->entries);
        if (!grown)
            return -1;
        raw->entries = grown;
    }
    if (raw->length + size > raw->size) {
        raw->size = raw->size * 2 + size + 256;
        grown = realloc(raw->names, raw->size);
        if (!grown)
            return -1;
        raw->names = grown;
    }
    memcpy(raw->names + raw->length, name, size);
    raw->entries[raw->count++] = (struct ufs_entry){
        .hash = ufs_hash(table, name),
        .inode = inode,
        .name = (uint32_t)raw->length,
        .more = -1,
        .place = (uint16_t)place,
        .type = (uint8_t)type,
    };
    raw->length += size;
    return 0;
}

/* Add what getdents(2) tells of one name. marked: whether empty files may be whiteouts. */
static int add_record(struct raw *raw, const struct ufs_table *table, int fd,
                      const struct ufs_dirent *record, bool marked, unsigned place)
{
    const char *name = record->d_name;
    unsigned type = record->d_type;
    struct stat status;

    if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
        return 0;
    if (!strncmp(name, UFS_AUFS_PREFIX, sizeof UFS_AUFS_PREFIX - 1))
        return add(raw, table, name + sizeof UFS_AUFS_PREFIX - 1, UFS_TYPE_AUFS, 0, place);
    if (type == DT_UNKNOWN || type == DT_CHR || (type == DT_REG && marked)) {
        if (fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW))
            return errno == ENOENT ? 0 : -1;
        type = IFTODT(status.st_mode);
        if ((type == DT_CHR && !status.st_rdev)
            || (marked && type == DT_REG && !status.st_size
                && ufs_has_mark(table, fd, name, UFS_MARK_WHITEOUT)))
            type = DT_WHT;
    }
    return add(raw, table, name, type, record->d_ino, place);
}

/* Add what the index of a layer tells of a directory. */
static int add_indexed(struct raw *raw, const struct ufs_table *table,
                       const struct ufs_index *index, const char *path, unsigned place)
{
    struct ufs_indexed directory, entry;
    const size_t prefix = sizeof UFS_AUFS_PREFIX - 1;
    int failed = 0;

    if (!ufs_index_directory(index, path, strlen(path), &directory)) {
        errno = ENOENT;
        return -1;
    }
    for (uint32_t at = 0; !failed && at < directory.count; at++) {
        ufs_index_entry(index, directory.first + at, &entry);
        if (!strncmp(entry.name, UFS_AUFS_PREFIX, prefix))
            failed = add(raw, table, entry.name + prefix, UFS_TYPE_AUFS, 0, place);
        else
            failed = add(raw, table, entry.name,
                         entry.marks & UFS_INDEX_WHITEOUT ? DT_WHT : IFTODT(entry.status.st_mode),
                         entry.status.st_ino, place);
    }
    return failed;
}

static int add_place(struct raw *raw, const struct ufs_table *table, int layer_fd,
                     const char *path, unsigned place)
{
    _Alignas(struct ufs_dirent) char buffer[UFS_DENTS_SIZE];
    int fd = ufs_open_beneath(layer_fd, path, O_RDONLY | O_DIRECTORY, 0), failed = 0;
    const struct ufs_dirent *record;
    ssize_t length;
    bool marked;

    if (fd == -1)
        return -1;
    marked = ufs_opaque(table, layer_fd, path) == 'x';
    while (!failed && (length = ufs_get_dents(fd, buffer, sizeof buffer)) > 0)
        for (ssize_t at = 0; !failed && at < length; at += record->d_reclen) {
            record = (const struct ufs_dirent *)(buffer + at);
            failed = add_record(raw, table, fd, record, marked, place);
        }
    close(fd);
    return failed || length < 0 ? -1 : 0;
}

/* By name, places top first, an AUFS whiteout after the file of the same place. */
static int order(const void *one, const void *other, void *context)
{
    const struct ufs_entry *a = one, *b = other;
    const char *names = context;
    int differs;

    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    differs = strcmp(names + a->name, names + b->name);
    if (differs)
        return differs;
    if (a->place != b->place)
        return a->place < b->place ? -1 : 1;
    return (a->type == UFS_TYPE_AUFS) - (b->type == UFS_TYPE_AUFS);
}

/* Keep of each name what answers; whiteouts only if they are wanted. */
static int merge(struct raw *raw, bool whiteouts, struct ufs_listing *listing)
{
    size_t kept = 0, links = 0, room = 0, next;
    struct ufs_link *grown;
    int32_t last;

    if (raw->count)
        qsort_r(raw->entries, raw->count, sizeof *raw->entries, order, raw->names);
    for (size_t at = 0; at < raw->count; at = next) {
        struct ufs_entry first = raw->entries[at];
        const char *name = raw->names + first.name;

        next = at + 1;
        while (next < raw->count && raw->entries[next].hash == first.hash
               && !strcmp(raw->names + raw->entries[next].name, name))
            next++;
        if (first.type == UFS_TYPE_AUFS)
            first.type = DT_WHT;
        if (first.type == DT_WHT && !whiteouts)
            continue;
        last = -1;
        for (size_t more = at + 1;
             first.type == DT_DIR && more < next && raw->entries[more].type == DT_DIR; more++) {
            if (links == room) {
                room = room ? room * 2 : 16;
                grown = realloc(listing->links, room * sizeof *grown);
                if (!grown)
                    return -1;
                listing->links = grown;
            }
            listing->links[links] = (struct ufs_link){ -1, raw->entries[more].place };
            if (last == -1)
                first.more = (int32_t)links;
            else
                listing->links[last].next = (int32_t)links;
            last = (int32_t)links++;
        }
        raw->entries[kept++] = first;
    }
    listing->entries = raw->entries;
    listing->count = kept;
    listing->names = raw->names;
    return 0;
}

static struct ufs_listing *merged(struct raw *raw, int failed, bool whiteouts)
{
    struct ufs_listing *listing = failed ? NULL : calloc(1, sizeof *listing);

    if (listing && !merge(raw, whiteouts, listing)) {
        if (listing->count) {
            void *less = realloc(listing->entries, listing->count * sizeof *listing->entries);
            listing->entries = less ? less : listing->entries;
            less = realloc(listing->names, raw->length);
            listing->names = less ? less : listing->names;
        }
        return listing;
    }
    if (listing)
        free(listing->links);
    free(listing);
    free(raw->entries);
    free(raw->names);
    return NULL;
}

struct ufs_listing *ufs_list_lower(const struct ufs_table *table, const struct ufs_node *node)
{
    struct raw raw = { 0 };
    char buffer[UFS_PATH_SIZE];
    const struct ufs_layer *layer;
    const char *path;
    int failed = 0;

    for (unsigned at = 0; !failed && at < node->lower_count; at++) {
        layer = &table->layers[node->lower[at].layer];
        path = ufs_lower_path(&node->lower[at], NULL, buffer);
        if (!path)
            failed = -1;
        else if (layer->index.data)
            failed = add_indexed(&raw, table, &layer->index, path, at);
        else
            failed = add_place(&raw, table, layer->fd, path, at);
    }
    return merged(&raw, failed, false);
}

struct ufs_listing *ufs_list_upper(const struct ufs_table *table, const struct ufs_node *node)
{
    struct raw raw = { 0 };
    char buffer[UFS_PATH_SIZE];
    const char *path = ufs_upper_path(node, NULL, buffer);
    int failed = !path || add_place(&raw, table, table->layers[0].fd, path, 0);

    return merged(&raw, failed, true);
}

void ufs_free_listing(struct ufs_listing *listing)
{
    if (!listing)
        return;
    free(listing->entries);
    free(listing->names);
    free(listing->links);
    free(listing);
}

const struct ufs_entry *ufs_listed(const struct ufs_listing *listing, const char *name,
                                   uint64_t hash)
{
    size_t low = 0, high = listing->count, middle;

    while (low < high) {
        middle = low + (high - low) / 2;
        if (listing->entries[middle].hash < hash)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < listing->count && listing->entries[low].hash == hash; low++)
        if (!strcmp(listing->names + listing->entries[low].name, name))
            return &listing->entries[low];
    return NULL;
}
