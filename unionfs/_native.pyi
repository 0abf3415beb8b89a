from unionfs._pure import get_xattr as get_xattr
from unionfs._pure import list_dir as list_dir
from unionfs._pure import open_beneath as open_beneath
