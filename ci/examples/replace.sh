#!/bin/sh
# The twin of in-place.sh: a new file is written, synced, and renamed over the old one; then the folder is synced.
#   tornblk run --exec ci/examples/replace.sh --check ci/examples/settings-check.sh
set -eu
settings() {
    head -c 65536 /dev/zero | tr '\0' "$1"
}
settings A >settings
sync settings .
tornblk-mark written
settings B >settings.new
sync settings.new
mv settings.new settings
sync .
tornblk-mark changed
