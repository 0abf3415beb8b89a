/* unionfs._native: the calls of unionfs/_pure.py that every lookup makes, or every file that is
 * unpacked, and unionfs/layers/header.py; same contract. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ufs_calls.h"
#include "ufs_tar.h"

enum { UFS_USUAL_VALUE = 256, UFS_LARGEST_VALUE = 65536, UFS_DENTS_BUFFER = 32768 };

static PyObject *failure(PyObject *path)
{
    return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
}

/* The descriptor, owned by the caller; or -1 with a Python exception set. */
static int open_or_raise(int dir_fd, PyObject *path, int flags, int mode)
{
    PyObject *encoded, *pure, *walked;
    const char *name;
    int fd;

    if (!PyUnicode_FSConverter(path, &encoded))
        return -1;
    name = *PyBytes_AS_STRING(encoded) ? PyBytes_AS_STRING(encoded) : ".";
    do {
        Py_BEGIN_ALLOW_THREADS
        fd = ufs_open_beneath(dir_fd, name, flags, (mode_t)mode);
        Py_END_ALLOW_THREADS
    } while (fd == -1 && errno == EINTR && !PyErr_CheckSignals());
    if (fd != -1 || PyErr_Occurred())
        goto out;
    if (errno != ENOSYS && errno != EPERM) {
        failure(path);
        goto out;
    }
    pure = PyImport_ImportModule("unionfs._pure");
    if (!pure)
        goto out;
    walked = PyObject_CallMethod(pure, "walk_beneath", "iOii", dir_fd, path, flags, mode);
    Py_DECREF(pure);
    if (walked) {
        fd = (int)PyLong_AsLong(walked);
        Py_DECREF(walked);
    }
out:
    Py_DECREF(encoded);
    return fd;
}

static PyObject *open_beneath(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "", "", "flags", "mode", NULL };
    PyObject *path;
    int dir_fd, flags, fd, mode = 0;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iOi|i:open_beneath", names, &dir_fd, &path,
                                     &flags, &mode))
        return NULL;
    fd = open_or_raise(dir_fd, path, flags, mode);
    return fd == -1 ? NULL : PyLong_FromLong(fd);
}

static PyObject *get_xattr(PyObject *module, PyObject *args)
{
    PyObject *path, *encoded_path = NULL, *encoded_name = NULL, *result = NULL;
    const char *file, *name;
    char usual[UFS_USUAL_VALUE], *value = usual, *largest = NULL;
    ssize_t length;
    int dir_fd;

    (void)module;
    if (!PyArg_ParseTuple(args, "iOO&:get_xattr", &dir_fd, &path, PyUnicode_FSConverter,
                          &encoded_name))
        return NULL;
    if (!PyUnicode_FSConverter(path, &encoded_path))
        goto out;
    file = PyBytes_AS_STRING(encoded_path);
    name = PyBytes_AS_STRING(encoded_name);

    Py_BEGIN_ALLOW_THREADS
    length = ufs_get_xattr(dir_fd, file, name, usual, sizeof usual);
    Py_END_ALLOW_THREADS
    if (length == -1 && errno == ERANGE) {
        value = largest = PyMem_Malloc(UFS_LARGEST_VALUE);
        if (!largest) {
            PyErr_NoMemory();
            goto out;
        }
        Py_BEGIN_ALLOW_THREADS
        length = ufs_get_xattr(dir_fd, file, name, largest, UFS_LARGEST_VALUE);
        Py_END_ALLOW_THREADS
    }
    if (length != -1)
        result = PyBytes_FromStringAndSize(value, length);
    else if (errno == ENODATA || errno == EOPNOTSUPP)
        result = Py_NewRef(Py_None);
    else
        failure(path);
out:
    PyMem_Free(largest);
    Py_XDECREF(encoded_path);
    Py_DECREF(encoded_name);
    return result;
}

/* A list of the names in a buffer, each of which ends with NUL. */
static PyObject *split(const char *names, ssize_t length)
{
    PyObject *result = PyList_New(0), *name;
    const char *end = names + length;
    int failed = !result;

    for (; !failed && names < end; names += strlen(names) + 1) {
        name = PyUnicode_DecodeFSDefault(names);
        failed = !name || PyList_Append(result, name);
        Py_XDECREF(name);
    }
    if (failed)
        Py_CLEAR(result);
    return result;
}

static PyObject *list_xattr(PyObject *module, PyObject *args)
{
    PyObject *path, *encoded = NULL, *result = NULL;
    char usual[UFS_USUAL_VALUE], *names = usual, *largest = NULL;
    ssize_t length;
    int dir_fd;

    (void)module;
    if (!PyArg_ParseTuple(args, "iO:list_xattr", &dir_fd, &path) ||
        !PyUnicode_FSConverter(path, &encoded))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    length = ufs_list_xattr(dir_fd, PyBytes_AS_STRING(encoded), usual, sizeof usual);
    Py_END_ALLOW_THREADS
    if (length == -1 && errno == ERANGE) {
        names = largest = PyMem_Malloc(UFS_LARGEST_VALUE);
        if (!largest) {
            PyErr_NoMemory();
            goto out;
        }
        Py_BEGIN_ALLOW_THREADS
        length = ufs_list_xattr(dir_fd, PyBytes_AS_STRING(encoded), largest, UFS_LARGEST_VALUE);
        Py_END_ALLOW_THREADS
    }
    if (length != -1)
        result = split(names, length);
    else if (errno == EOPNOTSUPP)
        result = PyList_New(0);
    else
        failure(path);
out:
    PyMem_Free(largest);
    Py_DECREF(encoded);
    return result;
}

/* lstat(2), with errno set; or -2 with a Python exception set. */
static int status_of(PyObject *args, const char *format, PyObject **path, struct stat *status)
{
    PyObject *encoded = NULL;
    int dir_fd, failed;

    if (!PyArg_ParseTuple(args, format, &dir_fd, path) || !PyUnicode_FSConverter(*path, &encoded))
        return -2;
    Py_BEGIN_ALLOW_THREADS
    failed = fstatat(dir_fd, PyBytes_AS_STRING(encoded), status,
                     AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH);
    Py_END_ALLOW_THREADS
    Py_DECREF(encoded);
    return failed;
}

static PyObject *exists(PyObject *module, PyObject *args)
{
    PyObject *path;
    struct stat status;
    int failed = status_of(args, "iO:exists", &path, &status);

    (void)module;
    if (failed == -2)
        return NULL;
    if (!failed)
        Py_RETURN_TRUE;
    if (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG || errno == EACCES)
        Py_RETURN_FALSE;
    return failure(path);
}

static PyObject *inode_and_change(PyObject *module, PyObject *args)
{
    PyObject *path;
    struct stat status;
    int failed = status_of(args, "iO:inode_and_change", &path, &status);

    (void)module;
    if (failed == -2)
        return NULL;
    if (!failed)
        return Py_BuildValue("KL", (unsigned long long)status.st_ino,
                             status.st_ctim.tv_sec * 1000000000LL + status.st_ctim.tv_nsec);
    if (errno == ENOENT || errno == ENOTDIR)
        Py_RETURN_NONE;
    return failure(path);
}

/* Fields of os.stat_result that programs know by their position. */
enum { UFS_ST_INO = 1, UFS_ST_DEV = 2, UFS_ST_NLINK = 3 };

static PyObject *renumbered(PyObject *module, PyObject *args)
{
    PyObject *status, *changed[3], *result, *count, *field;
    Py_ssize_t fields;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOOO:renumbered", &status, &changed[0], &changed[1], &changed[2]))
        return NULL;
    count = PyObject_GetAttrString((PyObject *)Py_TYPE(status), "n_fields");
    if (!count)
        return NULL;
    fields = PyLong_AsSsize_t(count);
    Py_DECREF(count);
    result = fields == -1 ? NULL : PyStructSequence_New(Py_TYPE(status));
    if (!result)
        return NULL;
    for (Py_ssize_t at = 0; at < fields; at++) {
        field = at >= UFS_ST_INO && at <= UFS_ST_NLINK ? changed[at - UFS_ST_INO]
                                                       : PyStructSequence_GetItem(status, at);
        PyStructSequence_SetItem(result, at, Py_NewRef(field));
    }
    return result;
}

/* Append one (name, type, inode number) of the directory fd, which the caller calls path,
 * unless it is . or .. or gone. 0, or -1 with a Python exception set. */
static int append_entry(PyObject *entries, int fd, PyObject *path,
                        const struct ufs_dirent *record)
{
    const char *name = record->d_name;
    unsigned type = record->d_type;
    PyObject *entry;
    struct stat status;
    int failed;

    if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
        return 0;
    if (type == DT_UNKNOWN) {
        Py_BEGIN_ALLOW_THREADS
        failed = fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW);
        Py_END_ALLOW_THREADS
        if (failed && errno == ENOENT)
            return 0;
        if (failed) {
            failure(path);
            return -1;
        }
        type = IFTODT(status.st_mode);
    }
    entry = Py_BuildValue("NIK", PyUnicode_DecodeFSDefault(name), type,
                          (unsigned long long)record->d_ino);
    if (!entry)
        return -1;
    failed = PyList_Append(entries, entry);
    Py_DECREF(entry);
    return failed;
}

static PyObject *list_dir(PyObject *module, PyObject *args)
{
    _Alignas(struct ufs_dirent) char buffer[UFS_DENTS_BUFFER];
    const struct ufs_dirent *record;
    PyObject *path, *entries;
    ssize_t length;
    int dir_fd, fd;

    (void)module;
    if (!PyArg_ParseTuple(args, "iO:list_dir", &dir_fd, &path))
        return NULL;
    fd = open_or_raise(dir_fd, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd == -1)
        return NULL;
    entries = PyList_New(0);
    while (entries) {
        Py_BEGIN_ALLOW_THREADS
        length = ufs_get_dents(fd, buffer, sizeof buffer);
        Py_END_ALLOW_THREADS
        if (length == 0)
            break;
        if (length == -1) {
            failure(path);
            Py_CLEAR(entries);
        }
        for (ssize_t at = 0; entries && at < length; at += record->d_reclen) {
            record = (const struct ufs_dirent *)(buffer + at);
            if (append_entry(entries, fd, path, record))
                Py_CLEAR(entries);
        }
    }
    Py_BEGIN_ALLOW_THREADS
    close(fd);
    Py_END_ALLOW_THREADS
    return entries;
}

/* A new file that lacks its content and more; data is held as long as this is. */
struct new_file {
    int fd;
    PyObject *name;
    Py_buffer data;
    long long seconds;
    long nanoseconds;
    struct ufs_owner_and_mode lacking;
};

static PyObject *complete_files(PyObject *module, PyObject *files)
{
    PyObject *sequence = PySequence_Fast(files, "a sequence of files");
    Py_ssize_t count = sequence ? PySequence_Fast_GET_SIZE(sequence) : 0, held = 0, failed = -1;
    struct new_file *all = sequence ? PyMem_Calloc((size_t)count + 1, sizeof *all) : NULL;
    int error = 0;

    (void)module;
    if (!all) {
        Py_XDECREF(sequence);
        return sequence ? PyErr_NoMemory() : NULL;
    }
    for (; held < count; held++) {
        struct new_file *file = &all[held];

        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(sequence, held), "iUy*LlIIi", &file->fd,
                              &file->name, &file->data, &file->seconds, &file->nanoseconds,
                              &file->lacking.uid, &file->lacking.gid, &file->lacking.mode))
            goto out;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < count; at++) {
        struct new_file *file = &all[at];
        struct timespec time = { .tv_sec = file->seconds, .tv_nsec = file->nanoseconds };

        if (failed != -1) {
            close(file->fd);
        } else if (ufs_complete(file->fd, file->data.buf, (size_t)file->data.len, time,
                                file->lacking)) {
            error = errno;
            failed = at;
        }
    }
    Py_END_ALLOW_THREADS
    if (failed != -1) {
        errno = error;
        failure(all[failed].name);
    }
out:
    while (held--)
        PyBuffer_Release(&all[held].data);
    PyMem_Free(all);
    Py_DECREF(sequence);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *write_sparsely(PyObject *module, PyObject *args)
{
    Py_buffer data;
    long long offset;
    int fd;
    off_t end;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*L:write_sparsely", &fd, &data, &offset))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    end = ufs_write_sparsely(fd, data.buf, (size_t)data.len, offset);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return end == -1 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLongLong(end);
}

/* A number as Python has it, None where the field holds none. */
static PyObject *number_in(const char *field, size_t size)
{
    int64_t number;

    return ufs_tar_number(field, size, &number) ? Py_NewRef(Py_None) : PyLong_FromLongLong(number);
}

static PyObject *text_in(const char *field, size_t size)
{
    return PyUnicode_DecodeFSDefaultAndSize(field, (Py_ssize_t)strnlen(field, size));
}

static PyObject *name_in(const struct ufs_tar_header *header)
{
    char path[UFS_TAR_PREFIX + 1 + UFS_TAR_NAME];
    size_t prefix = strnlen(header->prefix, UFS_TAR_PREFIX);
    size_t name = strnlen(header->name, UFS_TAR_NAME);

    if (!prefix || memcmp(header->magic, UFS_TAR_MAGIC, sizeof header->magic))
        return PyUnicode_DecodeFSDefaultAndSize(header->name, (Py_ssize_t)name);
    memcpy(path, header->prefix, prefix);
    path[prefix] = '/';
    memcpy(path + prefix + 1, header->name, name);
    return PyUnicode_DecodeFSDefaultAndSize(path, (Py_ssize_t)(prefix + 1 + name));
}

static PyObject *tar_fields(PyObject *module, PyObject *record)
{
    const struct ufs_tar_header *header;
    PyObject *result = NULL;
    Py_buffer data;

    (void)module;
    if (PyObject_GetBuffer(record, &data, PyBUF_SIMPLE))
        return NULL;
    header = data.buf;
    if (data.len != UFS_TAR_RECORD)
        PyErr_SetString(PyExc_ValueError, "a header is one record");
    else if (!ufs_tar_is_header(header))
        result = Py_NewRef(Py_None);
    else
        result = Py_BuildValue("NcNNNNNNNN", name_in(header), header->kind,
                               number_in(header->mode, sizeof header->mode),
                               number_in(header->uid, sizeof header->uid),
                               number_in(header->gid, sizeof header->gid),
                               number_in(header->size, sizeof header->size),
                               number_in(header->mtime, sizeof header->mtime),
                               text_in(header->target, sizeof header->target),
                               number_in(header->major, sizeof header->major),
                               number_in(header->minor, sizeof header->minor));
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef methods[] = {
    { "open_beneath", (PyCFunction)(void (*)(void))open_beneath, METH_VARARGS | METH_KEYWORDS,
      NULL },
    { "get_xattr", get_xattr, METH_VARARGS, NULL },
    { "list_xattr", list_xattr, METH_VARARGS, NULL },
    { "exists", exists, METH_VARARGS, NULL },
    { "inode_and_change", inode_and_change, METH_VARARGS, NULL },
    { "renumbered", renumbered, METH_VARARGS, NULL },
    { "list_dir", list_dir, METH_VARARGS, NULL },
    { "complete_files", complete_files, METH_O, NULL },
    { "write_sparsely", write_sparsely, METH_VARARGS, NULL },
    { "tar_fields", tar_fields, METH_O, NULL },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef_Slot slots[] = { { 0, NULL } };

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "unionfs._native",
    .m_doc = "What lookups and unpacking do most, in C.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
