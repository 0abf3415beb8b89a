#define _GNU_SOURCE
#include "ufs_table.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_listing.h"

enum {
    UFS_FIRST_SLOTS = 1024,
    UFS_FIRST_FILES = 64,
    UFS_GIVE_BACK = 1 << 14 /* nodes, some 4 MiB */
};

int ufs_table_init(struct ufs_table *table)
{
    if (getrandom(table->key, sizeof table->key, 0) != sizeof table->key)
        return -1;
    table->node_slots = table->name_slots = UFS_FIRST_SLOTS;
    table->nodes = calloc(table->node_slots, sizeof *table->nodes);
    table->names = calloc(table->name_slots, sizeof *table->names);
    table->next_id = UFS_ROOT_ID;
    if (!table->nodes || !table->names)
        return -1;
    errno = pthread_mutex_init(&table->lock, NULL);
    if (!errno)
        errno = pthread_cond_init(&table->copied, NULL);
    return errno ? -1 : 0;
}

static void free_node(struct ufs_node *node)
{
    ufs_free_lower(node);
    ufs_drop_names_above(node);
    free(node->open);
    free(node->last);
    free(node->redirect);
    free(node);
}

void ufs_table_free(struct ufs_table *table)
{
    for (size_t slot = 0; slot < table->name_slots && table->names; slot++)
        for (struct ufs_name *name = table->names[slot], *next; name; name = next) {
            next = name->next_in_hash;
            free(name);
        }
    for (size_t slot = 0; slot < table->node_slots && table->nodes; slot++)
        for (struct ufs_node *node = table->nodes[slot], *next; node; node = next) {
            next = node->next_in_hash;
            free_node(node);
        }
    for (int fd = 0; fd < table->file_room; fd++)
        if (table->files[fd].node)
            close(fd);
    free(table->files);
    free(table->linked);
    free(table->names);
    free(table->nodes);
    free(table->layers);
    free(table->filesystems);
}

static inline uint64_t rotated(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotated(v[1], 13) ^ v[0];
    v[0] = rotated(v[0], 32);
    v[2] += v[3];
    v[3] = rotated(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotated(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotated(v[1], 17) ^ v[2];
    v[2] = rotated(v[2], 32);
}

/* SipHash-1-3: the layers' authors choose the names, so they must not be able to choose hashes. */
uint64_t ufs_hash(const struct ufs_table *table, const char *name)
{
    size_t length = strlen(name);
    uint64_t word = 0;
    uint64_t v[4] = {
        table->key[0] ^ 0x736f6d6570736575, table->key[1] ^ 0x646f72616e646f6d,
        table->key[0] ^ 0x6c7967656e657261, table->key[1] ^ 0x7465646279746573,
    };

    for (size_t left = length; left >= sizeof word; left -= sizeof word, name += sizeof word) {
        memcpy(&word, name, sizeof word);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    word = 0;
    memcpy(&word, name, length % sizeof word);
    word |= (uint64_t)length << 56;
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

struct ufs_node *ufs_node(const struct ufs_table *table, uint64_t id)
{
    struct ufs_node *node = table->nodes[id & (table->node_slots - 1)];

    while (node && node->id != id)
        node = node->next_in_hash;
    return node;
}

static struct ufs_name **name_slot(const struct ufs_table *table, const struct ufs_node *parent,
                                   const char *text, uint64_t hash)
{
    size_t mixed = hash ^ parent->id * 0x9e3779b97f4a7c15;
    struct ufs_name **slot = &table->names[mixed & (table->name_slots - 1)];

    while (*slot
           && ((*slot)->parent != parent || (*slot)->hash != hash || strcmp((*slot)->text, text)))
        slot = &(*slot)->next_in_hash;
    return slot;
}

struct ufs_node *ufs_child(const struct ufs_table *table, const struct ufs_node *parent,
                           const char *name)
{
    struct ufs_name *found = *name_slot(table, parent, name, ufs_hash(table, name));

    return found ? found->node : NULL;
}

static void grow_nodes(struct ufs_table *table)
{
    size_t slots = table->node_slots * 2;
    struct ufs_node **grown = calloc(slots, sizeof *grown), *next;

    if (!grown)
        return; /* it goes on, slower */
    for (size_t slot = 0; slot < table->node_slots; slot++)
        for (struct ufs_node *node = table->nodes[slot]; node; node = next) {
            next = node->next_in_hash;
            node->next_in_hash = grown[node->id & (slots - 1)];
            grown[node->id & (slots - 1)] = node;
        }
    free(table->nodes);
    table->nodes = grown;
    table->node_slots = slots;
}

static void grow_names(struct ufs_table *table)
{
    size_t slots = table->name_slots * 2, mixed;
    struct ufs_name **grown = calloc(slots, sizeof *grown), *next;

    if (!grown)
        return;
    for (size_t slot = 0; slot < table->name_slots; slot++)
        for (struct ufs_name *name = table->names[slot]; name; name = next) {
            next = name->next_in_hash;
            mixed = (name->hash ^ name->parent->id * 0x9e3779b97f4a7c15) & (slots - 1);
            name->next_in_hash = grown[mixed];
            grown[mixed] = name;
        }
    free(table->names);
    table->names = grown;
    table->name_slots = slots;
}

struct ufs_node *ufs_new_node(struct ufs_table *table, unsigned type)
{
    struct ufs_node *node = calloc(1, sizeof *node), **slot;

    if (!node)
        return NULL;
    if (++table->node_count > table->node_slots)
        grow_nodes(table);
    node->id = table->next_id++;
    if (table->next_id == UFS_SHOWN_ROOT_ID)
        table->next_id++;
    node->type = (uint8_t)type;
    slot = &table->nodes[node->id & (table->node_slots - 1)];
    node->next_in_hash = *slot;
    *slot = node;
    return node;
}

int ufs_bind(struct ufs_table *table, struct ufs_node *node, struct ufs_node *parent,
             const char *text)
{
    size_t size = strlen(text) + 1;
    struct ufs_name *name = malloc(sizeof *name + size), **slot;

    if (!name)
        return -1;
    if (++table->name_count > table->name_slots)
        grow_names(table);
    name->node = node;
    name->parent = parent;
    name->hash = ufs_hash(table, text);
    memcpy(name->text, text, size);
    slot = name_slot(table, parent, text, name->hash);
    name->next_in_hash = *slot;
    *slot = name;
    name->next_of_node = node->names;
    node->names = name;
    parent->children++;
    free(node->last);
    node->last = NULL;
    return 0;
}

/* Before a file of a lower layer loses its last name, by which alone it is told where it lies. */
static void keep_place(const struct ufs_table *table, struct ufs_node *node)
{
    char buffer[UFS_PATH_SIZE], *path;
    int fd;

    if (node->type == DT_DIR || node->flags & UFS_UPPER || node->names->next_of_node)
        return;
    path = ufs_locate(table, node, &fd, buffer);
    node->lower = path ? malloc(sizeof *node->lower) : NULL;
    if (!node->lower)
        return;
    *node->lower = (struct ufs_place){ strdup(path), node->layer };
    node->lower_count = node->lower->path != NULL;
}

void ufs_unbind(struct ufs_table *table, struct ufs_node *parent, const char *text)
{
    struct ufs_name **slot = name_slot(table, parent, text, ufs_hash(table, text)), *name = *slot;
    struct ufs_node *node = name->node;
    struct ufs_name **link = &node->names;

    if (node->open)
        keep_place(table, node);
    *slot = name->next_in_hash;
    while (*link != name)
        link = &(*link)->next_of_node;
    *link = name->next_of_node;
    free(name);
    table->name_count--;
    parent->children--;
    ufs_drop_unused(table, node);
    ufs_drop_unused(table, parent);
}

struct ufs_node *ufs_linked(const struct ufs_table *table, dev_t device, ino_t inode)
{
    for (size_t at = 0; at < table->linked_count; at++)
        if (table->linked[at].inode == inode && table->linked[at].device == device)
            return table->linked[at].node;
    return NULL;
}

int ufs_link(struct ufs_table *table, struct ufs_node *node, dev_t device, ino_t inode)
{
    struct ufs_linked *grown;

    if (ufs_linked(table, device, inode) == node)
        return 0;
    if (table->linked_count == table->linked_room) {
        table->linked_room = table->linked_room ? table->linked_room * 2 : 16;
        grown = realloc(table->linked, table->linked_room * sizeof *grown);
        if (!grown)
            return -1;
        table->linked = grown;
    }
    table->linked[table->linked_count++] = (struct ufs_linked){ node, device, inode };
    node->flags |= UFS_LINKED;
    return 0;
}

static void unlink_node(struct ufs_table *table, const struct ufs_node *node)
{
    size_t kept = 0;

    for (size_t at = 0; at < table->linked_count; at++)
        if (table->linked[at].node != node)
            table->linked[kept++] = table->linked[at];
    table->linked_count = kept;
}

void ufs_drop_unused(struct ufs_table *table, struct ufs_node *node)
{
    struct ufs_node **slot;

    if (node->id == UFS_ROOT_ID || node->lookups || node->children || node->open
        || node->flags & UFS_BUSY)
        return;
    if (node->names) { /* the last time, this comes back with none */
        node->lookups++;
        while (node->names->next_of_node)
            ufs_unbind(table, node->names->parent, node->names->text);
        node->lookups--;
        ufs_unbind(table, node->names->parent, node->names->text);
        return;
    }
    if (node->flags & UFS_LINKED)
        unlink_node(table, node);
    slot = &table->nodes[node->id & (table->node_slots - 1)];
    while (*slot != node)
        slot = &(*slot)->next_in_hash;
    *slot = node->next_in_hash;
    table->node_count--;
    free_node(node);
    if (++table->dropped == UFS_GIVE_BACK) { /* by itself, malloc keeps what it once had */
        table->dropped = 0;
        malloc_trim(0);
    }
}

void ufs_forget(struct ufs_table *table, struct ufs_node *node, uint64_t lookups)
{
    node->lookups = lookups < node->lookups ? node->lookups - (uint32_t)lookups : 0;
    ufs_drop_unused(table, node);
}

void ufs_free_lower(struct ufs_node *node)
{
    for (unsigned at = 0; at < node->lower_count; at++)
        free(node->lower[at].path);
    free(node->lower);
    node->lower = NULL;
    node->lower_count = 0;
    ufs_free_listing(node->below);
    node->below = NULL;
}

void ufs_drop_names_above(struct ufs_node *node)
{
    ufs_free_listing(node->above);
    node->above = NULL;
}

void ufs_forget_names_above(struct ufs_node *node)
{
    ufs_drop_names_above(node);
    node->changed = ufs_now();
}

uint32_t ufs_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint32_t)now.tv_sec;
}

void ufs_stale_below(struct ufs_table *table, const struct ufs_node *directory)
{
    const struct ufs_node *above;

    for (size_t slot = 0; slot < table->node_slots; slot++)
        for (struct ufs_node *node = table->nodes[slot]; node; node = node->next_in_hash) {
            for (above = node; above->names && above != directory;)
                above = above->names->parent;
            if (above == directory && node != directory)
                node->flags |= UFS_STALE;
        }
}

static int need_open(struct ufs_node *node)
{
    if (node->open)
        return 0;
    node->open = malloc(sizeof *node->open);
    if (!node->open)
        return -1;
    *node->open = (struct ufs_open){ .first = -1, .shared = -1 };
    return 0;
}

static void drop_open(struct ufs_table *table, struct ufs_node *node)
{
    if (node->open->first != -1 || node->open->idle)
        return;
    free(node->open);
    node->open = NULL;
    ufs_drop_unused(table, node);
}

int ufs_opened(struct ufs_table *table, struct ufs_node *node, int fd, int flags, bool lower)
{
    struct ufs_file *grown;
    int room = table->file_room;

    if (fd >= room) {
        for (room = room ? room : UFS_FIRST_FILES; room <= fd;)
            room *= 2;
        grown = realloc(table->files, (size_t)room * sizeof *grown);
        if (!grown)
            return -1;
        memset(grown + table->file_room, 0, (size_t)(room - table->file_room) * sizeof *grown);
        table->files = grown;
        table->file_room = room;
    }
    if (need_open(node))
        return -1;
    table->files[fd] = (struct ufs_file){
        .node = node, .flags = flags, .next = node->open->first, .lower = lower
    };
    node->open->first = fd;
    return 0;
}

void ufs_closed(struct ufs_table *table, int fd)
{
    struct ufs_node *node = table->files[fd].node;
    int *link = &node->open->first;

    while (*link != fd)
        link = &table->files[*link].next;
    *link = table->files[fd].next;
    table->files[fd].node = NULL;
    drop_open(table, node);
    close(fd);
}

int ufs_open_idle(struct ufs_node *node)
{
    if (need_open(node))
        return -1;
    node->open->idle++;
    return 0;
}

void ufs_close_idle(struct ufs_table *table, struct ufs_node *node)
{
    int shared = node->open->shared;

    if (--node->open->idle)
        return;
    node->open->shared = -1;
    if (shared == -1)
        drop_open(table, node);
    else
        ufs_closed(table, shared);
}

int ufs_wake_idle(struct ufs_table *table, struct ufs_node *node)
{
    char buffer[UFS_PATH_SIZE], *path;
    int layer, fd;

    if (node->open->shared != -1)
        return node->open->shared;
    path = ufs_locate(table, node, &layer, buffer);
    fd = path ? ufs_open_beneath(layer, path, O_RDONLY | O_NOFOLLOW, 0) : -1;
    if (fd == -1)
        return -1;
    if (ufs_opened(table, node, fd, O_RDONLY, !(node->flags & UFS_UPPER))) {
        close(fd);
        return -1;
    }
    return node->open->shared = fd;
}

static char *put_before(char *end, const char *start, const char *text)
{
    size_t length = strlen(text);

    if (!end || (size_t)(end - start) <= length) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    if (*end)
        *--end = '/';
    return memcpy(end - length, text, length);
}

char *ufs_upper_path(const struct ufs_node *node, const char *name, char buffer[UFS_PATH_SIZE])
{
    char *path = buffer + UFS_PATH_SIZE - 1;

    *path = '\0';
    if (name)
        path = put_before(path, buffer, name);
    for (; path && node->names; node = node->names->parent)
        path = put_before(path, buffer, node->names->text);
    if (path && node->id != UFS_ROOT_ID) {
        errno = ENOENT;
        return NULL;
    }
    return path && !*path ? put_before(path, buffer, ".") : path;
}

char *ufs_lower_path(const struct ufs_place *place, const char *name, char buffer[UFS_PATH_SIZE])
{
    char *path = buffer + UFS_PATH_SIZE - 1;

    *path = '\0';
    if (name)
        path = put_before(path, buffer, name);
    if (*place->path)
        path = put_before(path, buffer, place->path);
    return path && !*path ? put_before(path, buffer, ".") : path;
}

char *ufs_locate(const struct ufs_table *table, const struct ufs_node *node, int *fd,
                 char buffer[UFS_PATH_SIZE])
{
    const struct ufs_node *parent;
    unsigned at = 0;

    if (ufs_is_removed(node)) {
        errno = ENOENT;
        return NULL;
    }
    if (node->flags & UFS_UPPER) {
        *fd = table->layers[0].fd;
        return ufs_upper_path(node, NULL, buffer);
    }
    if (node->type == DT_DIR) {
        *fd = table->layers[node->lower->layer].fd;
        return ufs_lower_path(node->lower, NULL, buffer);
    }
    parent = node->names->parent;
    while (at < parent->lower_count && parent->lower[at].layer != node->layer)
        at++;
    if (at == parent->lower_count) {
        errno = ENOENT;
        return NULL;
    }
    *fd = table->layers[node->layer].fd;
    return ufs_lower_path(&parent->lower[at], node->names->text, buffer);
}

/* As unionfs.inodes: the numbers that have no room for the mask, over a range of their own. */
static uint64_t scattered(const struct ufs_filesystem *filesystem, uint64_t inode)
{
    uint64_t mixed = inode + filesystem->mask * 0x9E3779B97F4A7C15;

    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
    return (filesystem->most + 1) | ((mixed ^ mixed >> 31) & filesystem->most);
}

bool ufs_number(const struct ufs_table *table, dev_t device, ino_t inode, uint64_t *number)
{
    const struct ufs_filesystem *filesystem;

    for (size_t at = 0; at < table->filesystem_count; at++) {
        filesystem = &table->filesystems[at];
        if (filesystem->device != device)
            continue;
        *number = inode <= filesystem->most ? inode | filesystem->mask
                                            : scattered(filesystem, inode);
        return true;
    }
    return false;
}
