#!/bin/sh
# The checker of two-disks.sh: what is on the main disk was said on the log's before; and once that was marked, it is there.
set -eu
grep -qx begun "$TORNBLK_MARKS" || exit 0
data=$(cat data)
said=$(sed 's/ *$//' "$TORNBLK_MOUNT_LOG/log")
if [ "$data" = new ] && [ "$said" != "data becomes new" ]; then
    echo "data is new, and the log says: $said"
    exit 1
fi
if grep -qx changed "$TORNBLK_MARKS" && [ "$data" != new ]; then
    echo "the change was acknowledged, and data is: $data"
    exit 1
fi
