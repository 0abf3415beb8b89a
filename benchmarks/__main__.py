"""`python -m benchmarks`: `unionmount bench` without the rest of the command line."""

from benchmarks.command import bench

if __name__ == "__main__":
    bench()
