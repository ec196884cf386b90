# Begins every program of these suites: goes into the unpacked packages, with the disk at /mnt and what the
# guest gives its programs. All of it goes with the guest's root.
set -u
if [ -z "${TORNBLK_INSIDE:-}" ]; then
    root=$TORNBLK_DB_ROOT
    mkdir -p "$root/mnt" "$root/tmp" "$root/dev" "$root/proc" "$root/run/tornblk" &&
        mount --bind "$TORNBLK_MOUNT" "$root/mnt" &&
        mount --bind /dev "$root/dev" && mount -t proc proc "$root/proc" &&
        mount --rbind /run/tornblk "$root/run/tornblk" && cp "$0" "$root/run/program" || exit 2
    export TORNBLK_INSIDE=1
    exec chroot "$root" /bin/sh /run/program "$@"
fi
export PATH=/run/tornblk/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run LC_ALL=C
cd /mnt || exit 2

# What is wrong, by a word that the report knows, and a sentence.
corrupt() { echo "corrupt: $*"; exit 10; }
lost() { echo "lost: $*"; exit 10; }
refused() { echo "refused: $*"; exit 10; }
# Whatever else there is says nothing of the disk.
failed() { echo "$*"; exit 2; }

# The last transaction that was acknowledged before the cut; 0: none.
acknowledged() {
    # Without it everything would be there that was acknowledged.
    [ -r "$TORNBLK_MARKS" ] || failed "the marks cannot be read: $TORNBLK_MARKS"
    sed -n 's/^acknowledged \([0-9]*\)$/\1/p' "$TORNBLK_MARKS" | tail -n 1 | grep . || echo 0
}
# Which transaction each row is of once number LAST is the last one: expected LAST ROWS EACH.
expected() {
    numbers $(($1 * $3)) "$2" | mawk -v rows="$2" -v each="$3" '
        { n[$1] = int((NR - 1) / each) + 1 }
        END { for (id = 1; id <= rows; id++) print id " " n[id] + 0 }'
}
# The same numbers for the same seed, on any machine: numbers COUNT BELOW.
numbers() {
    mawk -v n="$1" -v below="$2" -v x="${TORNBLK_SEED:-1}" 'BEGIN {
        x = (x * 7919 + 12345) % 2147483647; if (x < 1) x = 1
        for (i = 0; i < n; i++) { x = (x * 16807) % 2147483647; print x % below + 1 }
    }'
}
# So many transactions of EACH rows of ROWS, each with the ledger in it, and acknowledged once it has returned:
# transactions ROWS EACH UPDATE MARK, both for printf: UPDATE with the transaction twice and the rows, MARK with it once.
transactions() {
    numbers $((TORNBLK_TRANSACTIONS * $2)) "$1" | mawk -v each="$2" -v update="$3" -v mark="$4" '
        { ids = ids (n % each ? "," : "") $1; n++ }
        n % each == 0 {
            t++
            printf "begin; " update "; insert into ledger values (%d); commit;\n" mark "\n", t, t, ids, t, t
            ids = ""
        }'
}
# Rows and ledger are of whole transactions, the first of them all; $last: how many. `ask` is the database's own:
# whole ROWS EACH ROW PAD BLANK: what gives number and transaction of a row, what one of transaction n holds, of none.
whole() {
    count=$(ask 'select count(*) from a') || corrupt "the table cannot be read: $(shorter "$count")"
    [ "$count" = "$1" ] || corrupt "the table has $count rows, not $1"
    last=$(ask 'select coalesce(max(id), 0) from ledger') || corrupt "the ledger cannot be read: $(shorter "$last")"
    count=$(ask 'select count(*) from ledger') || corrupt "the ledger cannot be read: $(shorter "$count")"
    [ "$count" = "$last" ] || corrupt "the ledger has $count of $last transactions"
    # Each row is of the transaction that wrote it last.
    ask "select $3 from a order by id" >/run/rows || corrupt "the table cannot be read: $(shorter "$(tail -n 1 /run/rows)")"
    [ "$(expected "$last" "$1" "$2" | md5sum)" = "$(md5sum </run/rows)" ] ||
        corrupt "rows are not of the transactions that wrote them last"
    odd=$(ask "select count(*) from a where n > 0 and pad <> $4 or n = 0 and pad <> $5") ||
        corrupt "the table cannot be read: $(shorter "$odd")"
    [ "$odd" = 0 ] || corrupt "$odd rows are of no transaction"
}
# What was acknowledged is there; after all else, since what is corrupt is worse.
nothing_lost() {
    acknowledged=$(acknowledged) || failed "$acknowledged"
    [ "$last" -ge "$acknowledged" ] || lost "transaction $acknowledged was acknowledged, and the last one is $last"
}
# A message that fits into a sentence.
shorter() { echo "$1" | head -n 3 | cut -c1-200 | tr '\n' ' '; }
