/* System calls of Linux without their wrappers in every C library. No Python in here:
 * each function may run without the GIL. All return -1 with errno set on failure. */
#ifndef UFS_CALLS_H
#define UFS_CALLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* struct linux_dirent64, getdents(2); d_name ends with NUL, d_reclen is a multiple of 8. */
struct ufs_dirent {
    uint64_t d_ino;
    int64_t d_off;
    uint16_t d_reclen;
    uint8_t d_type;
    char d_name[];
};

/* The caller owns the descriptor returned. The path is not empty. */
int ufs_open_beneath(int dir_fd, const char *path, int flags, mode_t mode);

/* The length of the value, at most size; ERANGE where it is longer. "" is dir_fd itself. */
ssize_t ufs_get_xattr(int dir_fd, const char *path, const char *name, void *value, size_t size);

/* The length of the names, each ending with NUL; ERANGE where they are longer than size. */
ssize_t ufs_list_xattr(int dir_fd, const char *path, char *names, size_t size);

/* Write all of data at an offset: 0. */
int ufs_write_all(int fd, const char *data, size_t size, off_t offset);

/* Write data into a file that has none there; whole pages of zeros become holes. Where the last
 * write ended, or would have begun. */
off_t ufs_write_sparsely(int fd, const char *data, size_t size, off_t offset);

/* What a new file is to have; -1 for what it has already. */
struct ufs_owner_and_mode {
    uid_t uid;
    gid_t gid;
    int mode;
};

/* Give a new, empty file its content and all this, and close it, whatever happens. */
int ufs_complete(int fd, const char *data, size_t size, struct timespec time,
                 struct ufs_owner_and_mode lacking);

/* The bytes filled with whole struct ufs_dirent, 0 at the end. The buffer is 8-aligned. */
ssize_t ufs_get_dents(int fd, void *buffer, size_t size);

#endif
