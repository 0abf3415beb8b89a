/* What the kernel knows of a union: its nodes by ID and by name, and their open files. The table is
 * shared with Python, so whoever reads or changes it holds its lock. Nothing of Python in here. */
#ifndef UFS_TABLE_H
#define UFS_TABLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "ufs_index.h"

/* The shown root: as the kernel calls it where a directory is mounted (fuse_mount/subtree.py). */
enum { UFS_ROOT_ID = 1, UFS_SHOWN_ROOT_ID = 2 };
enum { UFS_PATH_SIZE = 4096, UFS_NAME_SIZE = 256, UFS_UUID_SIZE = 16 };

/* Flags of a node; the first four are those of unionfs.resolve.Node. */
enum {
    UFS_UPPER = 1 << 0,
    UFS_OPAQUE = 1 << 1,
    UFS_IMPURE = 1 << 2,
    UFS_ORIGIN = 1 << 3,
    UFS_PINNED = 1 << 4,      /* Python holds it: its names are for Python to change */
    UFS_STALE = 1 << 5,       /* its places changed: look it up again */
    UFS_LINKED = 1 << 6,      /* further names of its file are names of it */
    UFS_AUFS_KNOWN = 1 << 7,  /* UFS_AUFS is right */
    UFS_AUFS = 1 << 8,        /* its directory in upper holds AUFS' whiteouts */
    UFS_GIVEN = 1 << 9,       /* the kernel was given all its data once */
    UFS_COPYING = 1 << 10,    /* being copied up without the lock: its names stay as they are */
    UFS_GUARDS_KNOWN = 1 << 11, /* UFS_IMMUTABLE and UFS_APPEND are right */
    UFS_IMMUTABLE = 1 << 12,
    UFS_APPEND = 1 << 13,     /* append-only */
    UFS_BUSY = UFS_PINNED | UFS_COPYING,
};

/* index: what it holds, where that is known; data is NULL where not. */
struct ufs_layer {
    int fd;
    dev_t device;
    struct ufs_index index;
};

/* A filesystem that layers lie on. mask: what is put into its inode numbers; most: the greatest
 * that has room for that. */
struct ufs_filesystem {
    dev_t device;
    uint64_t mask, most;
    int root;
    unsigned char uuid[UFS_UUID_SIZE];
};

/* A directory of a lower layer. path: from the layer's root, "" that root; owned. */
struct ufs_place {
    char *path;
    uint16_t layer;
};

struct ufs_name {
    struct ufs_node *node, *parent;
    struct ufs_name *next_of_node, *next_in_hash;
    uint64_t hash;
    char text[];
};

/* The open files of a node. They are all of one mode, as the kernel wants it. */
struct ufs_open {
    int32_t backing; /* the kernel's ID of the file that is passed through to, or 0 */
    int first;       /* a descriptor, linked to the next by ufs_file */
    int shared;      /* that of all idle ones, or -1: they have needed none so far */
    uint32_t idle;   /* open files of a lower layer that the kernel may read from its cache alone */
};

struct ufs_file {
    struct ufs_node *node; /* NULL: not ours */
    int flags;
    int next; /* -1 at the end */
    bool lower;
    bool synced; /* with its place in upper */
};

struct ufs_node {
    uint64_t id;
    uint64_t number; /* st_ino in the union */
    dev_t device;    /* of the layer's file that it has its number from */
    ino_t inode;
    struct ufs_node *next_in_hash;
    struct ufs_name *names;      /* none: the root, or removed */
    struct ufs_place *lower;     /* of a directory: merged, top first; of a removed file: where */
    struct ufs_listing *below;   /* what those hold; NULL: not read yet */
    struct ufs_listing *above;   /* what upper holds, while it is being listed */
    struct ufs_open *open;       /* NULL: no open files */
    struct stat *last;           /* of a removed one: its status before */
    char *redirect;
    uint32_t lookups;  /* how often the kernel was told of it, less what it forgot */
    uint32_t children; /* names in it */
    uint32_t changed;  /* when a name in it in upper last came or went: ufs_now() */
    uint16_t flags;
    uint16_t lower_count;
    uint16_t layer; /* of a file in a lower layer: which one, below its parent's place there */
    uint8_t type;   /* DT_DIR, … */
};

/* A file of upper with several links, by its own identity: the node's may be its origin. */
struct ufs_linked {
    struct ufs_node *node;
    dev_t device;
    ino_t inode;
};

struct ufs_table {
    pthread_mutex_t lock;
    struct ufs_layer *layers; /* top first */
    size_t layer_count;
    struct ufs_filesystem *filesystems;
    size_t filesystem_count;
    bool has_upper; /* layers[0] is it */
    int work;       /* the work directory's descriptor; -1 where nothing may be written */
    uint64_t drafts;  /* made in it */
    bool durable;     /* copies of files are synced */
    bool ordered;     /* for which it is enough that their data is written (unionfs/journal.py) */
    bool strict;      /* those of directories are synced too, and all by fsync(2) */
    bool idmapped;    /* a layer lies on an idmapped mount */
    bool redirects;   /* a directory that lower layers hold is renamed by a redirect */
    pthread_cond_t copied; /* a node is UFS_COPYING no more */
    char prefix[32];  /* of the marks' attributes */
    uint64_t key[2];  /* of the hash of names */
    struct ufs_node **nodes;
    size_t node_count, node_slots;
    size_t dropped; /* nodes, since memory was given back to the machine */
    struct ufs_name **names;
    size_t name_count, name_slots;
    struct ufs_linked *linked; /* unordered; few */
    size_t linked_count, linked_room;
    struct ufs_file *files; /* by descriptor */
    int file_room;
    uint64_t next_id;
};

/* 0, or -1 with errno. The layers, filesystems, prefix, has_upper, work, durable, ordered, strict,
 * idmapped and redirects are the caller's to fill. */
int ufs_table_init(struct ufs_table *table);
void ufs_table_free(struct ufs_table *table);

uint64_t ufs_hash(const struct ufs_table *table, const char *name);

/* NULL where there is none. */
struct ufs_node *ufs_node(const struct ufs_table *table, uint64_t id);
struct ufs_node *ufs_child(const struct ufs_table *table, const struct ufs_node *parent,
                           const char *name);
struct ufs_node *ufs_linked(const struct ufs_table *table, dev_t device, ino_t inode);

/* A node without names or lookups; NULL with errno. The root is the first one. */
struct ufs_node *ufs_new_node(struct ufs_table *table, unsigned type);

/* Give a node a name, or take one; the name must not, must be there. bind: 0, or -1 with errno. */
int ufs_bind(struct ufs_table *table, struct ufs_node *node, struct ufs_node *parent,
             const char *name);
void ufs_unbind(struct ufs_table *table, struct ufs_node *parent, const char *name);

/* Let names of a file of upper be names of the node from now on. 0, or -1 with errno. */
int ufs_link(struct ufs_table *table, struct ufs_node *node, dev_t device, ino_t inode);

/* Free a node that the kernel, Python, open files and names in it have no use of any more. */
void ufs_drop_unused(struct ufs_table *table, struct ufs_node *node);
void ufs_forget(struct ufs_table *table, struct ufs_node *node, uint64_t lookups);

void ufs_free_lower(struct ufs_node *node);

/* Drop what is kept of the names in upper, when one of them came or went, or none is to be kept. */
void ufs_forget_names_above(struct ufs_node *node);
void ufs_drop_names_above(struct ufs_node *node);

/* Seconds since the machine started. */
uint32_t ufs_now(void);

/* Mark all that lies in a directory, at any depth, as stale. */
void ufs_stale_below(struct ufs_table *table, const struct ufs_node *directory);

/* Note an open file, whose descriptor is the table's from now on; close it. 0, or -1 with errno. */
int ufs_opened(struct ufs_table *table, struct ufs_node *node, int fd, int flags, bool lower);
void ufs_closed(struct ufs_table *table, int fd);

/* Note an idle open file, and its end. open: 0, or -1 with errno. */
int ufs_open_idle(struct ufs_node *node);
void ufs_close_idle(struct ufs_table *table, struct ufs_node *node);

/* The descriptor of the node's idle files, opened if it is not; -1 with errno. To be called before
 * the node loses its last name. */
int ufs_wake_idle(struct ufs_table *table, struct ufs_node *node);

static inline bool ufs_is_removed(const struct ufs_node *node)
{
    return !node->names && node->id != UFS_ROOT_ID;
}

static inline bool ufs_is_merged(const struct ufs_node *node)
{
    return node->lower_count + (node->flags & UFS_UPPER) > 1;
}

/* The path of name in a node's directory in upper, or of the node itself for name NULL, from the
 * layer's root, "." for that. It ends where the buffer ends. NULL with errno. */
char *ufs_upper_path(const struct ufs_node *node, const char *name, char buffer[UFS_PATH_SIZE]);

/* The path of name in a lower place, likewise. */
char *ufs_lower_path(const struct ufs_place *place, const char *name, char buffer[UFS_PATH_SIZE]);

/* Where the file lies that answers for a node with a name: the layer's descriptor and the path. */
char *ufs_locate(const struct ufs_table *table, const struct ufs_node *node, int *fd,
                 char buffer[UFS_PATH_SIZE]);

/* The number in the union of a layer's file; false where its filesystem is not known. */
bool ufs_number(const struct ufs_table *table, dev_t device, ino_t inode, uint64_t *number);

#endif
