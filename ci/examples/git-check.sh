#!/bin/sh
# The checker of git.sh: once there was a commit, git finds its repository sound; with DURABLE=yes, what was acknowledged is in the
# history.
set -eu
last=$(sed -n 's/^commit //p' "$TORNBLK_MARKS" | tail -n 1)
[ -n "$last" ] || exit 0
cd repo
git fsck --full --strict 2>&1
[ "${DURABLE:-no}" = yes ] || exit 0
git log --format=%s 2>/dev/null | grep -qx "$last" || {
    echo "commit $last was acknowledged, and is not in the history"
    exit 1
}
