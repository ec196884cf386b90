# SQLite: JOURNAL=delete|truncate|persist|wal (journal_mode), SYNC=off|normal|full|extra (synchronous). Each
# transaction updates some rows anywhere, and says in a table of its own that it was there.
rows=4000
each=12
ask() { sqlite3 -batch -bail t.db "$1" 2>&1; }
begin="pragma journal_mode=$JOURNAL; pragma synchronous=$SYNC; pragma wal_autocheckpoint=60; pragma cache_size=40;"

case $1 in
setup)
    mkdir /mnt/data && cd /mnt/data || exit 2
    sqlite3 -batch -bail t.db "pragma journal_mode=$JOURNAL;
        create table ledger (id integer primary key);
        create table a (id integer primary key, n int not null, pad text not null);
        insert into a select value, 0, printf('%.240c', '0') from generate_series(1, $rows);
        pragma wal_checkpoint(truncate)" >/run/log 2>&1 || failed "cannot load: $(tail -n 3 /run/log)"
    ;;
run)
    cd /mnt/data || exit 2
    {
        echo ".output /run/log"
        echo "$begin"
        echo ".output"
        for name in journal_mode synchronous page_size cache_size; do
            echo "select '$name ' || (select * from pragma_$name);"
        done
        echo "select 'version ' || sqlite_version();"
    } | sqlite3 -batch -bail t.db || failed "cannot open the database"
    {
        echo "$begin"
        transactions $rows $each "update a set n = %d, pad = printf('%%.240c', char(65 + %d %% 26)) where id in (%s)" \
            '.system tornblk-mark "acknowledged %d"'
        echo ".output /run/count"
        echo "select count(*) from ledger;"
        echo ".output"
        # No goodbye.
        echo ".system kill -9 \$PPID"
    } >/run/transactions
    sqlite3 -batch -bail t.db </run/transactions >/run/log 2>&1
    grep -qx "$TORNBLK_TRANSACTIONS" /run/count || failed "cannot update: $(tail -n 3 /run/log)"
    exit 0
    ;;
check)
    cd /mnt/data || exit 2
    # A directory is only synced with EXTRA: without any file there is nothing to be corrupt.
    [ -e t.db ] || corrupt "t.db is gone"
    if [ -n "${TORNBLK_DAMAGE:-}" ]; then
        # The control: half a page in the middle of the table is torn by hand.
        ask 'pragma wal_checkpoint(truncate)' >/run/log || failed "$(tail -n 3 /run/log)"
        dd if=/dev/zero of=t.db bs=2048 count=1 seek=$(($(stat -c %s t.db) / 8192 * 2 + 1)) conv=notrunc 2>/run/log ||
            failed "$(tail -n 3 /run/log)"
    fi
    said=$(ask 'pragma integrity_check') || refused "$(shorter "$said")"
    [ "$said" = ok ] || corrupt "integrity_check: $(shorter "$said")"
    whole $rows $each "id || ' ' || n" "printf('%.240c', char(65 + n % 26))" "printf('%.240c', '0')"
    nothing_lost
    ;;
esac
