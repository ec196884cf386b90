#!/bin/sh
# The checker of in-place.sh and replace.sh: once it was written, `settings` is all old or all new, and new for good once that was
# marked.
set -eu
grep -qx written "$TORNBLK_MARKS" || exit 0
size=$(wc -c <settings)
old=$(tr -d -c A <settings | wc -c)
new=$(tr -d -c B <settings | wc -c)
fail() {
    echo "settings: $1 ($old bytes old, $new new, of $size)"
    exit 1
}
[ "$size" -eq 65536 ] || fail "it is not as long as it was"
[ "$old" -eq 65536 ] || [ "$new" -eq 65536 ] || fail "it is neither the old nor the new one"
if grep -qx changed "$TORNBLK_MARKS"; then
    [ "$new" -eq 65536 ] || fail "the change was acknowledged, and is lost"
fi
