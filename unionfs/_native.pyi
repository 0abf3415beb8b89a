from unionfs._pure import complete_files as complete_files
from unionfs._pure import exists as exists
from unionfs._pure import get_xattr as get_xattr
from unionfs._pure import inode_and_change as inode_and_change
from unionfs._pure import list_dir as list_dir
from unionfs._pure import list_xattr as list_xattr
from unionfs._pure import open_beneath as open_beneath
from unionfs._pure import renumbered as renumbered
from unionfs._pure import write_sparsely as write_sparsely
from unionfs.layers.header import fields_in_python as tar_fields

__all__ = ["tar_fields"]
