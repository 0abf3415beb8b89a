"""What images and containers are kept in: content by digest, unpacked layers, snapshots."""

from unionfs.store.blobs import Blob, Blobs, Writer
from unionfs.store.collect import Collected
from unionfs.store.errors import (
    AlreadyExists,
    Corrupt,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreError,
)
from unionfs.store.layers import Layers
from unionfs.store.leases import Lease, Leases
from unionfs.store.names import Name, Names
from unionfs.store.snapshots import Directories, Info, MountCall, Snapshots, Usage
from unionfs.store.store import Store
from unionfs.store.usage import Share, StoreUsage
from unionfs.store.verify import Fault

__all__ = [
    "AlreadyExists",
    "Blob",
    "Blobs",
    "Collected",
    "Corrupt",
    "Directories",
    "FailedPrecondition",
    "Fault",
    "Info",
    "InvalidArgument",
    "Layers",
    "Lease",
    "Leases",
    "MountCall",
    "Name",
    "Names",
    "NotFound",
    "Share",
    "Snapshots",
    "Store",
    "StoreError",
    "StoreUsage",
    "Usage",
    "Writer",
]
