#define _GNU_SOURCE
#include "ufs_wait.h"

#include <errno.h>
#include <poll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Nanoseconds. */
enum {
    UFS_WINDOW_MAX = 50000,
    UFS_WINDOW_MIN = 5000,
    UFS_SOON = 70000,   /* after this long, waking included, looking out would have paid */
    UFS_LOST = 100000,  /* between two looks: another may have had the processor */
    UFS_REST = 10000000 /* after looking out in vain: who is to ask may wait for this processor */
};

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* How often this thread had to leave the processor to another. */
static long switches(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nivcsw;
}

static void rest(struct ufs_wait *wait, uint64_t time)
{
    wait->window = 0;
    wait->rest = time + UFS_REST;
}

/* Look out until the window ends: the result of read(2), or -1 with EAGAIN. */
static ssize_t look_out(struct ufs_wait *wait, uint64_t start, int fd, void *buffer, size_t size)
{
    uint64_t before, time = start;
    long switched = switches();
    ssize_t length = -1;

    errno = EAGAIN;
    while (length == -1 && errno == EAGAIN && time - start < wait->window) {
        length = read(fd, buffer, size);
        before = time;
        time = now();
        if (time - before > UFS_LOST && switches() != switched)
            rest(wait, time);
    }
    return length;
}

static ssize_t sleep_until_ready(int fd, void *buffer, size_t size)
{
    struct pollfd wanted = { .fd = fd, .events = POLLIN };
    ssize_t length;

    do {
        if (poll(&wanted, 1, -1) == -1)
            return -1;
        length = read(fd, buffer, size);
    } while (length == -1 && errno == EAGAIN);
    return length;
}

ssize_t ufs_wait(struct ufs_wait *wait, int fd, void *buffer, size_t size)
{
    ssize_t length = read(fd, buffer, size);
    uint64_t start, end;

    if (length != -1 || errno != EAGAIN)
        return length;
    start = now();
    length = look_out(wait, start, fd, buffer, size);
    if (length != -1 || errno != EAGAIN) {
        if (wait->window)
            wait->window = UFS_WINDOW_MAX;
        return length;
    }
    if (wait->window / 2 >= UFS_WINDOW_MIN)
        wait->window /= 2;
    else if (wait->window)
        rest(wait, now());
    length = sleep_until_ready(fd, buffer, size);
    end = now();
    if (!wait->window && end > wait->rest && end - start < UFS_SOON)
        wait->window = UFS_WINDOW_MAX;
    return length;
}
