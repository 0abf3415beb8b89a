/* Waiting for the kernel's next request. A sleeping thread takes long to wake, tens of microseconds
 * in a virtual machine or out of a deep idle state: several times what an answer takes. So one looks
 * out for a while before it sleeps, as the kernel's own halt polling does: only where requests have
 * been following each other closely, and not where others want the processor. */
#ifndef UFS_WAIT_H
#define UFS_WAIT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* All 0 at first. Nanoseconds. */
struct ufs_wait {
    uint64_t window; /* how long to look out */
    uint64_t rest;   /* until when not to, by the monotonic clock */
};

/* As read(2) of a descriptor with O_NONBLOCK, waiting for what there is to read. One thread at a
 * time. */
ssize_t ufs_wait(struct ufs_wait *wait, int fd, void *buffer, size_t size);

#endif
