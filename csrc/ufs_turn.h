/* One request and its reply: what all answers share, up to the copy-up that some need first. */
#ifndef UFS_TURN_H
#define UFS_TURN_H

#include <linux/fs.h>
#include <linux/fuse.h>
#include <sys/stat.h>

#include "ufs_serve.h"

enum {
    UFS_DATA_SIZE = 1 << 20, /* the most that is read or written by one request */
    UFS_FORWARD = 1,         /* instead of a negative errno: pyfuse3 shall answer */
    UFS_SILENT = 2,          /* the kernel waits for no reply */
    UFS_GUARDS = FS_IMMUTABLE_FL | FS_APPEND_FL
};

struct ufs_turn {
    struct ufs_session *session;
    struct ufs_table *table;
    const struct fuse_in_header *in;
    const void *argument; /* after the header */
    char *reply;
    size_t length; /* of the reply */
    uint64_t invalid; /* a node that the kernel has to ask about again, or 0 */
    bool names;       /* about the names in it too */
    const int *pipe;  /* empty, of this thread */
    bool leads;       /* this thread holds session->leading */
};

/* Room of that many bytes, all 0, at the end of the reply. */
void *ufs_room(struct ufs_turn *turn, size_t size);

/* The node that the request is about, with its places up to date: 0 or -errno. */
int ufs_at_node(const struct ufs_turn *turn, struct ufs_node **node);

/* As ufs_at_node, of a directory: below another file a path would go on elsewhere. */
int ufs_at_directory(const struct ufs_turn *turn, struct ufs_node **directory);

/* The status of a node's file: 0 or -errno. */
int ufs_read_status(const struct ufs_turn *turn, const struct ufs_node *node, struct stat *status);

void ufs_fill_attributes(const struct ufs_turn *turn, const struct ufs_node *node,
                         const struct stat *status, struct fuse_attr *attr);
void ufs_fill_entry(struct ufs_turn *turn, struct ufs_node *node, const struct stat *status,
                    struct fuse_entry_out *entry);

/* The reply that makes a node known to the kernel: 0. */
int ufs_tell(struct ufs_turn *turn, struct ufs_node *node, const struct stat *status);

/* The reply with a node's attributes: 0 or -errno. */
int ufs_tell_attributes(struct ufs_turn *turn, const struct ufs_node *node);

/* 0, or -EPERM where a node has one of the flags in UFS_GUARDS. */
int ufs_refuse(const struct ufs_turn *turn, struct ufs_node *node, unsigned flags);

/* Before something that may take long: let another thread wait for requests. */
void ufs_step_aside(struct ufs_turn *turn);

/* Say that files in a directory of upper may come from below: 0, or what to return. */
int ufs_note_impure(const struct ufs_turn *turn, struct ufs_node *directory);

/* Make upper hold a node and what it lies in: 0, or what to return. Lets go of the lock while it
 * copies a file. size: how many bytes of its data are wanted. */
int ufs_copy_up(struct ufs_turn *turn, struct ufs_node *node, uint64_t size);

/* Keep the status of a node that is about to lose its last name. links: what it has left. */
void ufs_keep_last(struct ufs_node *node, const struct stat *status, nlink_t links);

#endif
