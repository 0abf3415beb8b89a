"""Builds the C extension; everything else about the distribution is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

WARNING = """
******************************************************************************
unionmount: the C extension was NOT built: {error}
Everything works without it, slower. To have it, install a C compiler and
Python's headers (Debian, Ubuntu: apt install gcc python3-dev), then reinstall.
`unionmount doctor` tells whether it is there.
******************************************************************************
"""


class BuildOrWarn(build_ext):
    """Builds an extension, or says why not and leaves its work to unionfs/_pure.py."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            self.warn(WARNING.format(error=error))



def extension(name: str, *sources: str) -> Extension:
    """The extension called name, from what lies in csrc/."""
    return Extension(
        name,
        sources=[f"csrc/{source}" for source in sources],
        depends=sorted(glob("csrc/*.h")),
        extra_compile_args=["-std=c11", "-Wall", "-Wextra"],
        optional=True,
    )


setup(
    cmdclass={"build_ext": BuildOrWarn},
    ext_modules=[
        extension("unionfs._native", "native.c", "ufs_calls.c", "ufs_tar.c"),
        extension(
            "fuse_mount._fast",
            "fast.c",
            "ufs_attributes.c",
            "ufs_calls.c",
            "ufs_copyup.c",
            "ufs_directories.c",
            "ufs_fileattr.c",
            "ufs_files.c",
            "ufs_find.c",
            "ufs_index.c",
            "ufs_listing.c",
            "ufs_marks.c",
            "ufs_moves.c",
            "ufs_names.c",
            "ufs_owners.c",
            "ufs_serve.c",
            "ufs_table.c",
            "ufs_turn.c",
            "ufs_wait.c",
        ),
    ],
)
