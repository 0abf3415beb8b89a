#!/usr/bin/env bash
# Three layers, stacked by the kernel's overlayfs and then by FUSE: the same union, the same layer
# left behind. Needs `unionmount` on PATH. Everything happens in a folder that is removed again, and
# in a mount namespace that ends with this script; without root in a user namespace too.
set -euo pipefail

if [ -z "${UNIONMOUNT_DEMO:-}" ]; then
    export UNIONMOUNT_DEMO=1
    [ "$(id -u)" = 0 ] && exec unshare --mount "$0"
    unshare --user --map-root-user --mount true 2>/dev/null && exec unshare --user --map-root-user --mount "$0"
    echo "no user namespaces here (unionmount doctor says more): run this as root" >&2
    exit 1
fi

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    export FORCE_COLOR=1 # our output goes through a pipe, to be compared
    bold=$'\e[1m' green=$'\e[32m' cyan=$'\e[36m' plain=$'\e[0m'
else
    bold='' green='' cyan='' plain=''
fi

folder=$(mktemp -d)
trap 'cd /; unionmount umount --lazy "$folder/root" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

title() { printf '\n%s== %s ==%s\n' "$bold" "$*" "$plain"; }
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
run() {
    printf '%s$ %s%s\n' "$cyan" "$*" "$plain"
    bash -c "$*"
}

layers() {
    rm -rf base runtime app upper work root
    mkdir -p base/etc base/usr/bin runtime/usr/bin app/etc upper work root
    echo 'Welcome to base.' >base/etc/motd
    echo 'level = info' >base/etc/app.conf
    echo 'old tool' >base/usr/bin/tool
    echo 'python' >runtime/usr/bin/python
    echo 'level = debug' >app/etc/app.conf
    find base runtime app -exec touch --date=2026-01-01 {} +
}

story() {
    say "All three layers are one tree; app.conf is the top layer's."
    run "find root -type f | sort"
    run "cat root/etc/app.conf"

    say "Write a file of the lowest layer, delete another, add a third."
    run "echo 'Welcome, changed.' > root/etc/motd"
    run "rm root/usr/bin/tool"
    run "echo 'hello' > root/etc/new"

    say "Where does each file come from?"
    run "unionmount explain root/etc/app.conf root/etc/motd root/usr/bin/tool root/usr/bin/python"

    say "The layers below are as they were. What changed is a layer of its own:"
    run "cat base/etc/motd base/usr/bin/tool"
    run "unionmount diff root"
}

title "Three layers"
layers
run "find base runtime app -type f | sort"

for backend in overlayfs fuse; do
    title "Mounted by $backend"
    layers
    run "unionmount mount --lower app --lower runtime --lower base --upper upper --work work --backend $backend root"
    story | tee "$backend.txt"
    run "unionmount umount root"
    run "unionmount diff --lower app --lower runtime --lower base --upper upper" >"$backend.unmounted.txt"
done

title "The same"
run "cmp overlayfs.txt fuse.txt && cmp overlayfs.unmounted.txt fuse.unmounted.txt"
printf '%sBoth backends showed the same union and left the same layer.%s\n' "$green" "$plain"
