"""A store with the image `box`, as the tests of containers have it."""

from tests.containers.conftest import make_image, make_layer, store

__all__ = ["make_image", "make_layer", "store"]
