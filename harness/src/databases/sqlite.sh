# SQLite: JOURNAL=delete|truncate|persist|wal (journal_mode), SYNC=off|normal|full|extra (synchronous). Each
# transaction updates some rows anywhere, and says in a table of its own that it was there.
rows=4000
transactions=$TORNBLK_TRANSACTIONS
each=12
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
    sqlite3 -batch -bail t.db "$begin select 'version ' || sqlite_version(); pragma page_size; pragma synchronous" ||
        failed "cannot open the database"
    {
        echo "$begin"
        numbers $((transactions * each)) $rows | mawk -v each=$each '
            { ids = ids (n % each ? "," : "") $1; n++ }
            n % each == 0 {
                t++
                printf "begin; update a set n = %d, pad = printf(\047%%.240c\047, char(65 + %d %% 26)) where id in (%s);", t, t, ids
                printf " insert into ledger values (%d); commit;\n.system tornblk-mark \"acknowledged %d\"\n", t, t
                ids = ""
            }'
        echo ".output /run/count"
        echo "select count(*) from ledger;"
        echo ".output"
        # No goodbye.
        echo ".system kill -9 \$PPID"
    } >/run/transactions
    sqlite3 -batch -bail t.db </run/transactions >/run/log 2>&1
    grep -qx "$transactions" /run/count || failed "cannot update: $(tail -n 3 /run/log)"
    exit 0
    ;;
check)
    cd /mnt/data || exit 2
    # A directory is only synced with EXTRA: without any file there is nothing to be corrupt.
    [ -e t.db ] || corrupt "t.db is gone"
    sql() { sqlite3 -batch -bail t.db "$1" 2>&1; }
    said=$(sql 'pragma integrity_check') || refused "$said"
    [ "$said" = ok ] || corrupt "integrity_check: $(echo "$said" | head -n 3 | tr '\n' ' ')"
    count=$(sql 'select count(*) from a') || corrupt "$count"
    [ "$count" = $rows ] || corrupt "the table has $count rows, not $rows"
    last=$(sql 'select coalesce(max(id), 0) from ledger') || corrupt "$last"
    [ "$(sql 'select count(*) from ledger')" = "$last" ] || corrupt "the ledger has gaps"
    # Each row is of the transaction that wrote it last.
    sql "select id || ' ' || n from a order by id" >/run/rows
    [ "$(expected "$last" $rows $each | md5sum)" = "$(md5sum </run/rows)" ] ||
        corrupt "rows are not of the transactions that wrote them last"
    odd=$(sql "select count(*) from a where n > 0 and pad <> printf('%.240c', char(65 + n % 26))
        or n = 0 and pad <> printf('%.240c', '0')") || corrupt "$odd"
    [ "$odd" = 0 ] || corrupt "$odd rows are of no transaction"
    [ "$last" -ge "$(acknowledged)" ] || lost "transaction $(acknowledged) was acknowledged, and the last one is $last"
    ;;
esac
