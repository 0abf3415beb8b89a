"""Builds the C extension; everything else about the distribution is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "unionfs._native",
            sources=["csrc/native.c", "csrc/ufs_calls.c"],
            depends=["csrc/ufs_calls.h"],
            extra_compile_args=["-std=c11", "-Wall", "-Wextra"],
            # without a compiler: a warning, and unionfs/_pure.py does the work
            optional=True,
        )
    ]
)
