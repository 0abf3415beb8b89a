"""The union filesystem by FUSE: a process that answers the kernel from the library `unionfs`.

`device` mounts and agrees with the kernel on what to ask, `operations` answers, `session` is the
life of the process, and `python -m fuse_mount` its command line. Nothing in here knows how a union
is put together: that is the library's.
"""
