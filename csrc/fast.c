/* fuse_mount._fast: the fast path's table and threads, for fuse_mount/accelerate.py. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ufs_files.h"
#include "ufs_serve.h"

typedef struct {
    PyObject_HEAD
    struct ufs_session session;
    PyObject *ask, *copy_up;
    Py_buffer *indexes; /* of the layers; those without one have no obj */
    bool ready;
} Table;

/* In a thread without the GIL, which holds the table's lock. */
static int64_t ask_python(void *context, uint64_t parent, const char *name)
{
    Table *self = context;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *found = PyObject_CallFunction(self->ask, "Ky", (unsigned long long)parent, name);
    int64_t id = found ? PyLong_AsLongLong(found) : -EIO;

    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable(self->ask);
        id = -EIO;
    }
    Py_XDECREF(found);
    PyGILState_Release(state);
    return id;
}

static int copy_up_by_python(void *context, uint64_t directory)
{
    Table *self = context;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallFunction(self->copy_up, "K", (unsigned long long)directory);
    int failed = result ? (int)PyLong_AsLong(result) : -EIO;

    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable(self->copy_up);
        failed = -EIO;
    }
    Py_XDECREF(result);
    PyGILState_Release(state);
    return failed;
}

static int read_layers(Table *self, PyObject *layers)
{
    struct ufs_table *table = &self->session.table;
    Py_ssize_t count = PyList_Size(layers);
    int fd;

    if (count < 1)
        return -1;
    table->layers = calloc((size_t)count, sizeof *table->layers);
    self->indexes = calloc((size_t)count, sizeof *self->indexes);
    if (!table->layers || !self->indexes) {
        PyErr_NoMemory();
        return -1;
    }
    for (; (Py_ssize_t)table->layer_count < count; table->layer_count++) {
        unsigned long long device;
        PyObject *layer = PyList_GetItem(layers, (Py_ssize_t)table->layer_count), *data;
        Py_buffer *index = &self->indexes[table->layer_count];

        if (!PyArg_ParseTuple(layer, "iKO", &fd, &device, &data)
            || (data != Py_None && PyObject_GetBuffer(data, index, PyBUF_SIMPLE)))
            return -1;
        table->layers[table->layer_count] =
            (struct ufs_layer){ fd, device, { index->buf, (size_t)index->len } };
    }
    return 0;
}

static int read_filesystems(Table *self, PyObject *filesystems)
{
    struct ufs_table *table = &self->session.table;
    Py_ssize_t count = PyList_Size(filesystems), length;
    struct ufs_filesystem *filesystem;
    unsigned long long device, mask, most;
    const char *uuid;

    if (count < 1)
        return -1;
    table->filesystems = calloc((size_t)count, sizeof *table->filesystems);
    if (!table->filesystems) {
        PyErr_NoMemory();
        return -1;
    }
    for (; (Py_ssize_t)table->filesystem_count < count; table->filesystem_count++) {
        PyObject *one = PyList_GetItem(filesystems, (Py_ssize_t)table->filesystem_count);

        filesystem = &table->filesystems[table->filesystem_count];
        if (!PyArg_ParseTuple(one, "KKKiy#", &device, &mask, &most, &filesystem->root, &uuid,
                              &length))
            return -1;
        filesystem->device = device;
        filesystem->mask = mask;
        filesystem->most = most;
        memcpy(filesystem->uuid, uuid,
               length < UFS_UUID_SIZE ? (size_t)length : (size_t)UFS_UUID_SIZE);
    }
    return 0;
}

/* A pair: ranges of three numbers, and the one whom all are shown as, or None. */
static int read_ids(struct ufs_ids *ids, PyObject *told)
{
    PyObject *ranges, *one;

    if (!PyArg_ParseTuple(told, "O!O", &PyTuple_Type, &ranges, &one))
        return -1;
    ids->ranges = calloc((size_t)PyTuple_Size(ranges) + 1, sizeof *ids->ranges);
    if (!ids->ranges) {
        PyErr_NoMemory();
        return -1;
    }
    for (; (Py_ssize_t)ids->count < PyTuple_Size(ranges); ids->count++) {
        struct ufs_range *range = &ids->ranges[ids->count];

        if (!PyArg_ParseTuple(PyTuple_GetItem(ranges, (Py_ssize_t)ids->count), "III", &range->disk,
                              &range->inside, &range->count))
            return -1;
    }
    ids->squashed = one != Py_None;
    if (ids->squashed)
        ids->one = (uint32_t)PyLong_AsUnsignedLong(one);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "layers", "filesystems", "prefix", "ask", "copy_up", "has_upper",
                             "work", "durable", "ordered", "strict", "passthrough", "writeback",
                             "xattrs", "syncs", "idmapped", "redirects", "static_nlink", "users",
                             "groups", "timeout", NULL };
    int has_upper, work, durable, ordered, strict, passthrough, writeback, xattrs, syncs, idmapped,
        redirects, static_nlink;
    PyObject *layers, *filesystems, *ask, *copy_up, *users, *groups;
    struct ufs_session *session;
    const char *prefix;
    double timeout;
    Table *self = (Table *)type->tp_alloc(type, 0);

    if (!self)
        return NULL;
    session = &self->session;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!yOOpippppppppppO!O!d:Table", names,
                                     &PyList_Type, &layers, &PyList_Type, &filesystems, &prefix,
                                     &ask, &copy_up, &has_upper, &work, &durable, &ordered,
                                     &strict, &passthrough, &writeback, &xattrs, &syncs, &idmapped,
                                     &redirects, &static_nlink, &PyTuple_Type, &users,
                                     &PyTuple_Type, &groups, &timeout)
        || read_layers(self, layers) || read_filesystems(self, filesystems)
        || read_ids(&session->users, users) || read_ids(&session->groups, groups)) {
        Py_DECREF(self);
        return NULL;
    }
    if (ufs_table_init(&session->table) || pthread_mutex_init(&session->pending_lock, NULL)
        || pthread_mutex_init(&session->leading, NULL)
        || !ufs_new_node(&session->table, DT_DIR)) {
        Py_DECREF(self);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    strncpy(session->table.prefix, prefix, sizeof session->table.prefix - 1);
    session->table.has_upper = has_upper;
    session->table.work = work;
    session->table.durable = durable;
    session->table.ordered = ordered;
    session->table.strict = strict;
    session->table.idmapped = idmapped;
    session->table.redirects = redirects;
    session->passthrough = passthrough;
    session->writeback = writeback;
    session->xattrs = xattrs;
    session->syncs = syncs;
    session->static_nlink = static_nlink;
    session->seconds = (uint64_t)timeout;
    session->nanoseconds = (uint32_t)((timeout - (double)session->seconds) * 1e9);
    session->asked = (struct ufs_asked){ ask_python, copy_up_by_python, self };
    session->device = session->socket = -1;
    self->ask = Py_NewRef(ask);
    self->copy_up = Py_NewRef(copy_up);
    self->ready = true;
    return (PyObject *)self;
}

static void table_dealloc(Table *self)
{
    ufs_forget_pending(&self->session);
    for (size_t at = 0; self->indexes && at < self->session.table.layer_count; at++)
        PyBuffer_Release(&self->indexes[at]);
    free(self->indexes);
    free(self->session.users.ranges);
    free(self->session.groups.ranges);
    ufs_table_free(&self->session.table);
    if (self->ready) {
        pthread_mutex_destroy(&self->session.table.lock);
        pthread_cond_destroy(&self->session.table.copied);
        pthread_mutex_destroy(&self->session.pending_lock);
        pthread_mutex_destroy(&self->session.leading);
    }
    Py_XDECREF(self->ask);
    Py_XDECREF(self->copy_up);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *table_lock(Table *self, PyObject *none)
{
    (void)none;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->session.table.lock);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *table_unlock(Table *self, PyObject *none)
{
    (void)none;
    pthread_mutex_unlock(&self->session.table.lock);
    Py_RETURN_NONE;
}

static struct ufs_node *node_or_raise(Table *self, unsigned long long id)
{
    struct ufs_node *node = ufs_node(&self->session.table, id);

    if (!node) {
        errno = ESTALE;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return node;
}

static PyObject *table_new_node(Table *self, PyObject *args)
{
    struct ufs_node *node;
    unsigned type;

    if (!PyArg_ParseTuple(args, "I:new", &type))
        return NULL;
    node = ufs_new_node(&self->session.table, type);
    return node ? PyLong_FromUnsignedLongLong(node->id) : PyErr_NoMemory();
}

/* put(id, flags, device, inode, number, places, redirect): all facts of a node but its names.
 * places: (layer, path) of each lower one; of a file, the layer counts. */
static PyObject *table_put(Table *self, PyObject *args)
{
    unsigned long long id, device, inode, number;
    unsigned flags, kept = UFS_BUSY | UFS_LINKED | UFS_AUFS_KNOWN | UFS_AUFS;
    PyObject *places, *path, *redirect;
    struct ufs_place *lower = NULL;
    struct ufs_node *node;
    Py_ssize_t count;
    bool covered;

    if (!PyArg_ParseTuple(args, "KIKKKO!O:put", &id, &flags, &device, &inode, &number,
                          &PyTuple_Type, &places, &redirect))
        return NULL;
    node = node_or_raise(self, id);
    if (!node)
        return NULL;
    count = PyTuple_Size(places);
    if (count && node->type == DT_DIR) {
        lower = calloc((size_t)count, sizeof *lower);
        if (!lower)
            return PyErr_NoMemory();
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        unsigned short layer;

        if (!PyArg_ParseTuple(PyTuple_GetItem(places, at), "HO&", &layer, PyUnicode_FSConverter,
                              &path))
            return NULL; /* a caller's mistake; the process ends */
        node->layer = layer;
        if (lower)
            lower[at] = (struct ufs_place){ strdup(PyBytes_AS_STRING(path)), layer };
        Py_DECREF(path);
    }
    covered = node->lower_count && !count;
    if (node->type == DT_DIR) {
        ufs_free_lower(node);
        node->lower = lower;
        node->lower_count = (uint16_t)count;
    }
    node->flags = (uint16_t)((node->flags & kept) | flags);
    node->device = device;
    node->inode = inode;
    node->number = number;
    free(node->redirect);
    node->redirect = PyBytes_Check(redirect) ? strdup(PyBytes_AS_STRING(redirect)) : NULL;
    if (covered)
        ufs_stale_below(&self->session.table, node);
    Py_RETURN_NONE;
}

static PyObject *lower_of(const struct ufs_table *table, const struct ufs_node *node)
{
    char buffer[UFS_PATH_SIZE], *path;
    PyObject *places = PyList_New(0), *place;
    int fd, failed;

    if (places && node->names && node->type != DT_DIR && !(node->flags & UFS_UPPER)) {
        path = ufs_locate(table, node, &fd, buffer);
        place = path ? Py_BuildValue("IN", node->layer, PyUnicode_DecodeFSDefault(path)) : NULL;
        failed = place && PyList_Append(places, place);
        Py_XDECREF(place);
        if (failed)
            Py_CLEAR(places);
    }
    for (unsigned at = 0; places && at < node->lower_count; at++) {
        place = Py_BuildValue("IN", node->lower[at].layer,
                              PyUnicode_DecodeFSDefault(node->lower[at].path));
        failed = !place || PyList_Append(places, place);
        Py_XDECREF(place);
        if (failed)
            Py_CLEAR(places);
    }
    return places;
}

/* facts(id): (type, flags, device, inode, names, places, redirect), as put takes them;
 * names: (parent's ID, name) of each. */
static PyObject *table_facts(Table *self, PyObject *args)
{
    PyObject *names, *name, *places;
    struct ufs_node *node;
    unsigned long long id;
    int failed = 0;

    if (!PyArg_ParseTuple(args, "K:facts", &id))
        return NULL;
    node = node_or_raise(self, id);
    if (!node)
        return NULL;
    /* What Python may do to it needs the descriptors of its open files. */
    if (node->open && node->open->idle && ufs_wake_idle(&self->session.table, node) == -1)
        return PyErr_SetFromErrno(PyExc_OSError);
    names = PyList_New(0);
    if (!names)
        return NULL;
    for (struct ufs_name *one = node->names; one && !failed; one = one->next_of_node) {
        name = Py_BuildValue("KN", (unsigned long long)one->parent->id,
                             PyUnicode_DecodeFSDefault(one->text));
        failed = !name || PyList_Append(names, name);
        Py_XDECREF(name);
    }
    places = failed ? NULL : lower_of(&self->session.table, node);
    if (!places) {
        Py_DECREF(names);
        return NULL;
    }
    return Py_BuildValue("IIKKNNy", (unsigned)node->type, (unsigned)node->flags,
                         (unsigned long long)node->device, (unsigned long long)node->inode,
                         names, places, node->redirect);
}

static PyObject *table_child(Table *self, PyObject *args)
{
    const struct ufs_node *node;
    unsigned long long parent;
    const char *name;

    if (!PyArg_ParseTuple(args, "Ky:child", &parent, &name))
        return NULL;
    node = node_or_raise(self, parent);
    if (!node)
        return NULL;
    node = ufs_child(&self->session.table, node, name);
    return PyLong_FromUnsignedLongLong(node ? node->id : 0);
}

static PyObject *table_bind(Table *self, PyObject *args)
{
    struct ufs_node *node, *directory;
    unsigned long long id, parent;
    const char *name;

    if (!PyArg_ParseTuple(args, "KKy:bind", &id, &parent, &name))
        return NULL;
    node = node_or_raise(self, id);
    directory = node ? node_or_raise(self, parent) : NULL;
    if (!directory)
        return NULL;
    if (!ufs_child(&self->session.table, directory, name)
        && ufs_bind(&self->session.table, node, directory, name))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *table_unbind(Table *self, PyObject *args)
{
    struct ufs_node *directory;
    unsigned long long parent;
    const char *name;

    if (!PyArg_ParseTuple(args, "Ky:unbind", &parent, &name))
        return NULL;
    directory = node_or_raise(self, parent);
    if (!directory)
        return NULL;
    if (ufs_child(&self->session.table, directory, name))
        ufs_unbind(&self->session.table, directory, name);
    Py_RETURN_NONE;
}

static PyObject *table_changed(Table *self, PyObject *id)
{
    struct ufs_node *node = node_or_raise(self, PyLong_AsUnsignedLongLong(id));

    if (!node)
        return NULL;
    ufs_forget_names_above(node);
    Py_RETURN_NONE;
}

static PyObject *table_tell(Table *self, PyObject *id)
{
    struct ufs_node *node = node_or_raise(self, PyLong_AsUnsignedLongLong(id));

    if (!node)
        return NULL;
    node->lookups++;
    Py_RETURN_NONE;
}

static PyObject *table_invalidate(Table *self, PyObject *id)
{
    ufs_invalidate(&self->session, PyLong_AsUnsignedLongLong(id), false);
    Py_RETURN_NONE;
}

/* Have a directory listed anew. The caller does not hold the lock, for the kernel may wait for one
 * who lists it now. */
static PyObject *table_relist(Table *self, PyObject *id)
{
    uint64_t number = PyLong_AsUnsignedLongLong(id);
    struct ufs_node *node;

    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->session.table.lock);
    node = ufs_node(&self->session.table, number);
    if (node)
        ufs_forget_names_above(node);
    pthread_mutex_unlock(&self->session.table.lock);
    ufs_invalidate(&self->session, number, true);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *table_pin(Table *self, PyObject *id)
{
    struct ufs_node *node = node_or_raise(self, PyLong_AsUnsignedLongLong(id));

    if (!node)
        return NULL;
    node->flags |= UFS_PINNED;
    Py_RETURN_NONE;
}

static PyObject *table_is_copying(Table *self, PyObject *id)
{
    const struct ufs_node *node = ufs_node(&self->session.table, PyLong_AsUnsignedLongLong(id));

    return PyBool_FromLong(node && node->flags & UFS_COPYING);
}

/* Wait until a node is not being copied up by C any more. The caller does not hold the lock. */
static PyObject *table_settle(Table *self, PyObject *id)
{
    struct ufs_table *table = &self->session.table;
    uint64_t number = PyLong_AsUnsignedLongLong(id);
    const struct ufs_node *node;

    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&table->lock);
    while ((node = ufs_node(table, number)) && node->flags & UFS_COPYING)
        pthread_cond_wait(&table->copied, &table->lock);
    pthread_mutex_unlock(&table->lock);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Let a node go, which ends here if nobody uses it. */
static PyObject *table_unpin(Table *self, PyObject *id)
{
    struct ufs_node *node = ufs_node(&self->session.table, PyLong_AsUnsignedLongLong(id));

    if (node) {
        node->flags &= (uint16_t)~UFS_PINNED;
        ufs_drop_unused(&self->session.table, node);
    }
    Py_RETURN_NONE;
}

static PyObject *table_linked(Table *self, PyObject *args)
{
    unsigned long long device, inode;
    const struct ufs_node *node;

    if (!PyArg_ParseTuple(args, "KK:linked", &device, &inode))
        return NULL;
    node = ufs_linked(&self->session.table, device, inode);
    return PyLong_FromUnsignedLongLong(node ? node->id : 0);
}

static PyObject *table_link(Table *self, PyObject *args)
{
    unsigned long long id, device, inode;
    struct ufs_node *node;

    if (!PyArg_ParseTuple(args, "KKK:link", &id, &device, &inode))
        return NULL;
    node = node_or_raise(self, id);
    if (!node)
        return NULL;
    return ufs_link(&self->session.table, node, device, inode) ? PyErr_NoMemory()
                                                               : Py_NewRef(Py_None);
}

static PyObject *table_files(Table *self, PyObject *id)
{
    struct ufs_node *node = node_or_raise(self, PyLong_AsUnsignedLongLong(id));
    PyObject *files = node ? PyList_New(0) : NULL, *one;
    const struct ufs_file *file;
    int failed;

    if (!files)
        return NULL;
    for (int fd = node->open ? node->open->first : -1; fd != -1; fd = file->next) {
        file = &self->session.table.files[fd];
        one = Py_BuildValue("iiN", fd, file->flags, PyBool_FromLong(file->lower));
        failed = !one || PyList_Append(files, one);
        Py_XDECREF(one);
        if (failed) {
            Py_DECREF(files);
            return NULL;
        }
    }
    return files;
}

/* opened(id, fd, flags): a file of upper that Python has made. */
static PyObject *table_opened(Table *self, PyObject *args)
{
    struct ufs_node *node;
    unsigned long long id;
    int fd, flags;

    if (!PyArg_ParseTuple(args, "Kii:opened", &id, &fd, &flags))
        return NULL;
    node = node_or_raise(self, id);
    if (!node)
        return NULL;
    if (ufs_keep_open(&self->session, node, fd, flags, false))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *table_followed(Table *self, PyObject *fd)
{
    long number = PyLong_AsLong(fd);

    if (number >= 0 && number < self->session.table.file_room)
        self->session.table.files[number].lower = false;
    Py_RETURN_NONE;
}

/* set_last(id, mode, links, uid, gid, device, size, blocks, block size, times in ns): what a
 * removed node was. */
static PyObject *table_set_last(Table *self, PyObject *args)
{
    unsigned long long id, device, links;
    unsigned mode, uid, gid;
    long long size, blocks, block_size, atime, mtime, ctime;
    const long long second = 1000000000;
    struct ufs_node *node;

    if (!PyArg_ParseTuple(args, "KIKIIKLLLLLL:set_last", &id, &mode, &links, &uid, &gid, &device,
                          &size, &blocks, &block_size, &atime, &mtime, &ctime))
        return NULL;
    node = node_or_raise(self, id);
    if (!node)
        return NULL;
    free(node->last);
    node->last = calloc(1, sizeof *node->last);
    if (!node->last)
        return PyErr_NoMemory();
    node->last->st_mode = mode;
    node->last->st_nlink = links;
    node->last->st_uid = uid;
    node->last->st_gid = gid;
    node->last->st_rdev = device;
    node->last->st_size = size;
    node->last->st_blocks = blocks;
    node->last->st_blksize = block_size;
    node->last->st_atim = (struct timespec){ atime / second, atime % second };
    node->last->st_mtim = (struct timespec){ mtime / second, mtime % second };
    node->last->st_ctim = (struct timespec){ ctime / second, ctime % second };
    Py_RETURN_NONE;
}

/* start(device, init, root): what the threads are to use; the descriptor for pyfuse3, ours no more.
 * init: the first message that it is to find there, or None. root: the ID of it for the kernel. */
static PyObject *table_start(Table *self, PyObject *args)
{
    const char *init;
    Py_ssize_t size;
    unsigned long long root;
    int pair[2], flags;

    if (!PyArg_ParseTuple(args, "iz#K:start", &self->session.device, &init, &size, &root))
        return NULL;
    self->session.root = root;
    flags = fcntl(self->session.device, F_GETFL);
    if (flags == -1 || fcntl(self->session.device, F_SETFL, flags | O_NONBLOCK) == -1)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == -1)
        return PyErr_SetFromErrno(PyExc_OSError);
    self->session.socket = pair[0];
    if (init && send(pair[0], init, (size_t)size, MSG_NOSIGNAL) == -1)
        return PyErr_SetFromErrno(PyExc_OSError); /* the process ends */
    return PyLong_FromLong(pair[1]);
}

static PyObject *ran(int failed)
{
    return failed ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

static PyObject *table_serve(Table *self, PyObject *none)
{
    int failed;

    (void)none;
    Py_BEGIN_ALLOW_THREADS
    failed = ufs_serve(&self->session);
    Py_END_ALLOW_THREADS
    return ran(failed);
}

static PyObject *table_carry(Table *self, PyObject *none)
{
    int failed;

    (void)none;
    Py_BEGIN_ALLOW_THREADS
    failed = ufs_carry(&self->session);
    Py_END_ALLOW_THREADS
    return ran(failed);
}

static PyMethodDef methods[] = {
    { "lock", (PyCFunction)table_lock, METH_NOARGS, NULL },
    { "unlock", (PyCFunction)table_unlock, METH_NOARGS, NULL },
    { "new", (PyCFunction)table_new_node, METH_VARARGS, NULL },
    { "put", (PyCFunction)table_put, METH_VARARGS, NULL },
    { "facts", (PyCFunction)table_facts, METH_VARARGS, NULL },
    { "child", (PyCFunction)table_child, METH_VARARGS, NULL },
    { "bind", (PyCFunction)table_bind, METH_VARARGS, NULL },
    { "unbind", (PyCFunction)table_unbind, METH_VARARGS, NULL },
    { "changed", (PyCFunction)table_changed, METH_O, NULL },
    { "tell", (PyCFunction)table_tell, METH_O, NULL },
    { "invalidate", (PyCFunction)table_invalidate, METH_O, NULL },
    { "relist", (PyCFunction)table_relist, METH_O, NULL },
    { "pin", (PyCFunction)table_pin, METH_O, NULL },
    { "is_copying", (PyCFunction)table_is_copying, METH_O, NULL },
    { "settle", (PyCFunction)table_settle, METH_O, NULL },
    { "unpin", (PyCFunction)table_unpin, METH_O, NULL },
    { "linked", (PyCFunction)table_linked, METH_VARARGS, NULL },
    { "link", (PyCFunction)table_link, METH_VARARGS, NULL },
    { "files", (PyCFunction)table_files, METH_O, NULL },
    { "opened", (PyCFunction)table_opened, METH_VARARGS, NULL },
    { "followed", (PyCFunction)table_followed, METH_O, NULL },
    { "set_last", (PyCFunction)table_set_last, METH_VARARGS, NULL },
    { "start", (PyCFunction)table_start, METH_VARARGS, NULL },
    { "serve", (PyCFunction)table_serve, METH_NOARGS, NULL },
    { "carry", (PyCFunction)table_carry, METH_NOARGS, NULL },
    { NULL, NULL, 0, NULL },
};

static PyTypeObject table_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fuse_mount._fast.Table",
    .tp_basicsize = sizeof(Table),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "What the kernel knows of a union; csrc/ufs_table.h.",
    .tp_new = table_new,
    .tp_dealloc = (destructor)table_dealloc,
    .tp_methods = methods,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fuse_mount._fast",
    .m_doc = "The fast path of the FUSE mount.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__fast(void)
{
    PyObject *module;

    if (PyType_Ready(&table_type))
        return NULL;
    module = PyModule_Create(&definition);
    if (module
        && (PyModule_AddObjectRef(module, "Table", (PyObject *)&table_type)
            || PyModule_AddIntConstant(module, "REDO", UFS_REDO)
            || PyModule_AddIntConstant(module, "UPPER", UFS_UPPER)
            || PyModule_AddIntConstant(module, "OPAQUE", UFS_OPAQUE)
            || PyModule_AddIntConstant(module, "IMPURE", UFS_IMPURE)
            || PyModule_AddIntConstant(module, "ORIGIN", UFS_ORIGIN)
            || PyModule_AddIntConstant(module, "STALE", UFS_STALE)))
        Py_CLEAR(module);
    return module;
}
