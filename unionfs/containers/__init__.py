"""Containers: a writable layer over an image, mounted, run by an OCI runtime, made an image."""

from unionfs.containers.container import Container, Containers

__all__ = ["Container", "Containers"]
