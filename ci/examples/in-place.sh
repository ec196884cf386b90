#!/bin/sh
# Overwrites a configuration in place, as many programs do: what a power cut leaves may be half of each.
#   tornblk run --exec ci/examples/in-place.sh --check ci/examples/settings-check.sh
set -eu
settings() {
    head -c 65536 /dev/zero | tr '\0' "$1"
}
settings A >settings
sync settings .
tornblk-mark written
settings B | dd of=settings conv=notrunc,fsync bs=64k iflag=fullblock status=none
tornblk-mark changed
