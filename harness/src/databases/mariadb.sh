# MariaDB: DOUBLEWRITE=ON|OFF|fast, METHOD=O_DIRECT|fsync. Rows are a quarter of a kilobyte, so that a table has many
# pages; each transaction updates some rows anywhere, and says in a table of its own that it was there.
rows=12000
each=12
server() {
    mariadbd --no-defaults --user=root --datadir=/mnt/data --basedir=/usr --socket=/run/s --skip-networking \
        --skip-grant-tables --skip-log-bin --performance-schema=0 --pid-file=/run/pid --tmpdir=/run \
        --innodb-buffer-pool-size=8M --innodb-log-file-size=24M --innodb-log-buffer-size=2M \
        --innodb-data-file-path=ibdata1:8M:autoextend --innodb-autoextend-increment=1 \
        --innodb-temp-data-file-path=../../run/ibtmp1:4M:autoextend --innodb-undo-tablespaces=0 \
        --innodb-doublewrite="$DOUBLEWRITE" --innodb-flush-method="$METHOD" --innodb-flush-neighbors=0 \
        --innodb-fast-shutdown=1 --innodb-buffer-pool-dump-at-shutdown=0 \
        --innodb-buffer-pool-load-at-startup=0 "$@" >>/run/log 2>&1 &
    server=$!
}
sql() { mariadb --no-defaults --socket=/run/s -N -B -e "$1"; }
ask() { mariadb --no-defaults --socket=/run/s -N -B -e "$1" t 2>&1; }
up() {
    server "$@"
    n=0
    until sql 'select 1' >/dev/null 2>&1; do
        if ! kill -0 $server 2>/dev/null; then
            wait $server
            # Any other signal is its own doing: it ends itself where it finds what cannot be.
            [ $? != 137 ] || failed "the server was killed: is there too little memory?"
            return 1
        fi
        n=$((n + 1))
        [ $n -lt 1200 ] || failed "the server is still starting"
        sleep 0.1
    done
}
down() {
    sql shutdown && wait $server
}
said() { grep -E 'ERROR|corrupt|crashed|got signal' /run/log | tail -n 3 | cut -c1-200 | tr '\n' ' '; }
# What it lacks is no fault of the disk's.
lacks() { grep -E 'annot allocate memory|ut of memory|No space left on device|disk is full' /run/log | head -n 1; }

case $1 in
setup)
    mkdir /mnt/data || exit 2
    up || failed "the server does not start: $(tail -n 5 /run/log)"
    sql "create database t; use t;
        create table ledger (id int primary key) engine=innodb;
        create table a (id int primary key, n int not null, pad char(240) not null) engine=innodb;
        insert into a select seq, 0, repeat('0', 240) from seq_1_to_$rows" || failed "cannot load: $(said)"
    down || failed "the server does not shut down: $(said)"
    ;;
run)
    up || failed "the server does not start: $(tail -n 5 /run/log)"
    sql "select concat('version ', version()); show variables where variable_name in
        ('innodb_doublewrite', 'innodb_flush_method', 'innodb_data_file_buffering', 'innodb_page_size',
         'innodb_checksum_algorithm', 'innodb_flush_log_at_trx_commit', 'innodb_buffer_pool_size',
         'innodb_flush_neighbors', 'innodb_use_atomic_writes', 'innodb_use_native_aio')"
    # Pages go to the disk as soon as they are dirty.
    sql "set global innodb_max_dirty_pages_pct = 0; set global innodb_max_dirty_pages_pct_lwm = 0"
    transactions $rows $each "update a set n = %d, pad = repeat(char(65 + %d %% 26), 240) where id in (%s)" \
        '\\! tornblk-mark "acknowledged %d"' >/run/transactions
    mariadb --no-defaults --socket=/run/s -N -B t </run/transactions || failed "cannot update: $(said)"
    [ "$(ask 'select count(*) from ledger')" = $TORNBLK_TRANSACTIONS ] || failed "the ledger is not whole"
    # Time for the page cleaner; then no goodbye.
    sleep 2
    kill -9 $server
    ;;
check)
    if ! up; then
        [ -z "$(lacks)" ] || failed "$(lacks)"
        [ -n "$(said)" ] || failed "the server does not start, and does not say why: $(tail -n 3 /run/log)"
        refused "$(said)"
    fi
    wrong=$(sql 'check table t.a extended; check table t.ledger extended' 2>&1 | grep -v 'status.OK$' |
        tr '\n' ' ')
    [ -z "$wrong" ] || corrupt "CHECK TABLE: $wrong"
    whole $rows $each "concat(id, ' ', n)" "repeat(char(65 + n % 26), 240)" "repeat('0', 240)"
    down || corrupt "the server does not shut down: $(said)"
    cd data || exit 2
    for file in t/*.ibd; do
        said=$(innochecksum "$file" 2>&1) || corrupt "innochecksum $file: $(shorter "$said")"
    done
    # Pages 64 to 191 are the double writes themselves: copies of other pages, of which a crash may leave half.
    said=$(innochecksum --end-page=63 ibdata1 2>&1 && innochecksum --start-page=192 ibdata1 2>&1) ||
        corrupt "innochecksum ibdata1: $(shorter "$said")"
    nothing_lost
    ;;
esac
