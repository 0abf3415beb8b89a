# make demo      three layers, mounted by the kernel and by FUSE, and what a write leaves behind
# make test      every check: lint, types, C, tests
# make bench     unionmount's speed beside other unions', as a page in build/bench
# make bench-layers  how fast layers unpack and are made, beside umoci, skopeo with tar, and podman
# make bench-containers  what containers cost to make and to mount
# make sanitize  what uses the C extensions, under the address and undefined-behaviour sanitizers
# make sanitize-threads  the same, with many clients at once, under the thread sanitizer
# make fuzz MINUTES=N   random operations through every door, compared with the kernel's
# make fuzz-requests MINUTES=N, make fuzz-index MINUTES=N
#                what C reads from the kernel and from layers' indexes, by libFuzzer
# make soak MINUTES=N   64 clients at one mount, whose memory and descriptors have to stay flat
# make test-userns   the tests as an ordinary user, root in a user namespace of his own
# make crashes   the mount program and the store killed at every step of every change, and the
#                power gone at every flush
# make pjdfstest PJDFSTEST=DIR, make fsx XFSTESTS=DIR, make fsstress XFSTESTS=DIR
#                others' suites through a mount; see docs/testing.md
# make clean     take away what these made
#
# Each sets up what it needs, the first time: system packages by apt, then .venv.

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
WARNINGS := -std=c11 -Wall -Wextra -Werror
SANITIZED := build/sanitized
FUZZERS := build/fuzzers
FUZZED = clang $(WARNINGS) -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined

.PHONY: demo test test-userns check-c bench bench-layers bench-containers \
	sanitize sanitize-threads soak crashes \
	fuzz fuzz-requests fuzz-index pjdfstest fsx fsstress clients clean

demo: $(VENV)/ready
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" examples/demo.sh

test: $(VENV)/ready clients check-c
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest

test-userns: $(VENV)/ready clients
	$(PYTHON) -m tests.userns -rfs

check-c: $(VENV)/ready
	gcc $(WARNINGS) -fsyntax-only $$($(PYTHON) -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))') csrc/*.c

bench: $(VENV)/ready
	$(VENV)/bin/unionmount bench -o build/bench

bench-layers: $(VENV)/ready clients
	$(PYTHON) -m benchmarks.layers -o build/bench

bench-containers: $(VENV)/ready
	$(PYTHON) -m benchmarks.containers -o build/bench

# A copy of the package and its tests, so that the extension in use stays as it is. Addresses are not
# random, as the thread sanitizer wants it; what it finds in a mount's program, it writes to a file.
# The address sanitizer gives no memory back.
sanitize: SANITIZERS := address,undefined
sanitize: RUNTIME := libasan.so
sanitize: SANITIZED_TESTS := tests/unionfs/test_system.py tests/layers/test_header.py \
	tests/fuse_mount tests/conformance -k "not (library or pure or given_back)"
sanitize-threads: SANITIZERS := thread
sanitize-threads: RUNTIME := libtsan.so
sanitize-threads: SANITIZED_TESTS := tests/fuse_mount/test_clients.py \
	tests/fuse_mount/test_requests.py tests/conformance/test_machine.py \
	-k "not (library or pure)"

sanitize sanitize-threads: $(VENV)/ready
	rm -rf $(SANITIZED)
	CFLAGS="-g -fsanitize=$(SANITIZERS) -fno-sanitize-recover" \
		$(PYTHON) setup.py -q build --build-base build/objects-$@ --build-lib $(SANITIZED)
	cp -r tests pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && LD_PRELOAD="$$(gcc -print-file-name=$(RUNTIME))" \
		ASAN_OPTIONS=detect_leaks=0 \
		TSAN_OPTIONS="ignore_noninstrumented_modules=1 die_after_fork=0 log_path=$$PWD/race" \
		PYTHONPATH="$$PWD" setarch -R $(CURDIR)/$(PYTHON) -m pytest -p no:cacheprovider $(SANITIZED_TESTS)
	cd $(SANITIZED) && ! cat race.* 2>/dev/null

# In mounts of its own: for as long as another process has copies of them, the kernel mounts no
# upper with an index again.
fuzz: $(VENV)/ready
	unshare --mount $(PYTHON) -m tests.fuzz $(or $(MINUTES),10)

fuzz-requests fuzz-index: fuzz-%: $(FUZZERS)/%
	mkdir -p $(FUZZERS)/$*.corpus
	cd $(FUZZERS) && ./$* -max_total_time=$$(($(or $(MINUTES),10) * 60)) -timeout=60 \
		-max_len=1024 -len_control=0 -print_final_stats=1 $*.corpus

$(FUZZERS)/requests: CODE := csrc/ufs_*.c -Wl,--wrap=read,--wrap=write,--wrap=writev,--wrap=ioctl
$(FUZZERS)/index: CODE := csrc/ufs_index.c

$(FUZZERS)/%: tests/fuzzers/%.c $(wildcard csrc/ufs_*)
	.ci/apt-install clang libclang-rt-dev
	mkdir -p $(FUZZERS)
	$(FUZZED) $< $(CODE) -o $@

soak: $(VENV)/ready
	unshare --mount $(PYTHON) -m tests.soak $(or $(MINUTES),10)

crashes: $(VENV)/ready
	$(PYTHON) -m pytest -m thorough tests/unionfs/test_crashes.py tests/fuse_mount/test_cut_short.py \
		tests/store/test_crashes.py tests/conformance/test_power_loss.py

pjdfstest: $(VENV)/ready
	$(PYTHON) -m tests.suites $@ $(PJDFSTEST)

fsx fsstress: $(VENV)/ready
	$(PYTHON) -m tests.suites $@ $(XFSTESTS)

# Only root can have the container clients, whose tests are skipped otherwise.
clients:
	[ "$$(id -u)" != 0 ] || .ci/setup-clients

clean:
	rm -rf $(VENV) build unionfs/*.so *.egg-info

$(VENV)/ready: pyproject.toml setup.py $(wildcard csrc/*)
	.ci/setup-build
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(PYTHON) -c 'from unionfs.system import NATIVE; NATIVE or print("WARNING: the C extension was not built: all works, slower")'
	touch $@
