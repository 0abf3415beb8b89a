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


setup(
    cmdclass={"build_ext": BuildOrWarn},
    ext_modules=[
        Extension(
            "unionfs._native",
            sources=sorted(glob("csrc/*.c")),
            depends=sorted(glob("csrc/*.h")),
            extra_compile_args=["-std=c11", "-Wall", "-Wextra"],
            optional=True,
        )
    ],
)
