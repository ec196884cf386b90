#!/bin/sh
# Commits in a loop, as an editor's autosave or a configuration daemon does.
#   tornblk run --exec ci/examples/git.sh --check ci/examples/git-check.sh
# --env GIT_FSYNC=all sets core.fsync; --env DURABLE=yes has the checker ask for acknowledged commits, too.
set -eu
git init -q repo
cd repo
git config user.name example
git config user.email example@example.com
[ -z "${GIT_FSYNC:-}" ] || git config core.fsync "$GIT_FSYNC"
git config gc.auto 0
# The repository was there long ago: what its first folders survive is not the question.
sync
for n in 1 2 3; do
    seq "$n" 200 >file
    git add file
    git commit -q -m "$n"
    tornblk-mark "commit $n"
done
