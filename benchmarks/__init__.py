"""How fast a union is: the same workloads over our doors, their peers, and a plain directory.

`unionmount bench` or `python -m benchmarks` builds the fixtures (`fixtures.py`), mounts them
through each peer (`peers.py`), times each workload (`workloads.py`) in a process of its own
(`session.py`), all peers by turns in each round (`runner.py`), and reports medians, spread and
ratios (`results.py`) in the terminal, as JSON and as an HTML page.

No part of the library; it needs a source tree and the optional dependencies `bench`.
"""
