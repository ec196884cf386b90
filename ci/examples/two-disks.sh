#!/bin/sh
# Says on a disk of its own what it is about to do, and does it on another, as a database with its log does.
#   tornblk run --exec ci/examples/two-disks.sh --check ci/examples/two-disks-check.sh --size 32m --disk log=16m
# With --env FLUSH=main it flushes the wrong disk in between: what it did is there, and what it said may be lost.
set -eu
log=$TORNBLK_MOUNT_LOG/log
say() {
    printf '%-4096s' "$1" | dd of="$log" bs=4k iflag=fullblock oflag=direct conv=notrunc status=none
}
printf '%-4096s' nothing >"$log"
echo old >data
sync
tornblk-mark begun
say "data becomes new"
if [ "${FLUSH:-log}" = main ]; then
    sync data
else
    sync "$log"
fi
echo new >data
sync data
tornblk-mark changed
