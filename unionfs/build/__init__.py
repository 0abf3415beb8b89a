"""Images from Dockerfiles: each step runs over the image so far and makes one layer of it."""

from unionfs.build.builder import BuildOptions, Step, build
from unionfs.build.dockerfile import BuildError

__all__ = ["BuildError", "BuildOptions", "Step", "build"]
