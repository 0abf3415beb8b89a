/* The fast path: requests of the kernel that are answered from the table, without Python. */
#ifndef UFS_SERVE_H
#define UFS_SERVE_H

#include "ufs_find.h"
#include "ufs_owners.h"
#include "ufs_wait.h"

/* The errno of a reply that says: what was in the way is done, answer the request yourself. */
enum { UFS_REDO = 530 };

struct ufs_pending;

struct ufs_session {
    struct ufs_table table;
    struct ufs_asked asked;
    uint64_t root; /* its ID for the kernel */
    int device; /* /dev/fuse, with O_NONBLOCK; not ours to close */
    int socket; /* to pyfuse3; open as long as the threads may use it: to the process' end */
    bool passthrough, writeback, xattrs, syncs;
    bool static_nlink; /* directories have one link */
    struct ufs_ids users, groups;
    uint64_t seconds; /* that the kernel may keep what it is told */
    uint32_t nanoseconds;
    pthread_mutex_t leading; /* held by the one thread that waits for the kernel's requests */
    struct ufs_wait wait;    /* its */
    pthread_mutex_t pending_lock;
    struct ufs_pending *pending; /* forwarded requests that may come back */
};

/* Answer requests until the mount is gone: 0, or -1 with errno. Several threads may: one waits for
 * requests and answers what is quick, so that no other has to be woken; it lets the next one take
 * over before it does what may take long. */
int ufs_serve(struct ufs_session *session);

/* Carry pyfuse3's replies to the kernel until the socket is shut down. */
int ufs_carry(struct ufs_session *session);

/* Have the kernel ask for a node's attributes again, and for what is in it where contents tells. */
void ufs_invalidate(const struct ufs_session *session, uint64_t id, bool contents);

void ufs_forget_pending(struct ufs_session *session);

#endif
