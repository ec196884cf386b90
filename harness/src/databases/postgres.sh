# PostgreSQL: FPW=on|off (full_page_writes), DIRECT=|data (debug_io_direct). Rows are a quarter of a kilobyte, so
# that a table has many pages; each transaction updates some rows anywhere, and says in a table of its own that
# it was there.
rows=8000
each=12
export PATH=/usr/lib/postgresql/17/bin:$PATH
# The server does not run as root.
as_user() { chroot --userspec=1000:1000 / "$@"; }
server() {
    as_user pg_ctl -D /mnt/data -l /run/u/server -w -t 120 -o "-k /run/u -c listen_addresses= \
        -c shared_buffers=1MB -c full_page_writes=$FPW -c debug_io_direct=$DIRECT -c fsync=on \
        -c wal_level=minimal -c max_wal_senders=0 -c max_wal_size=1GB -c checkpoint_timeout=1h -c autovacuum=off \
        -c bgwriter_delay=10ms -c bgwriter_lru_maxpages=1000 -c bgwriter_lru_multiplier=10 \
        -c bgwriter_flush_after=1 -c backend_flush_after=1 -c checkpoint_flush_after=1 -c max_connections=5 \
        -c dynamic_shared_memory_type=mmap -c max_parallel_workers=0 -c jit=off" start >/run/u/ctl 2>&1
}
sql() { as_user psql -X -q -A -t -v ON_ERROR_STOP=1 -h /run/u -d t "$@"; }
ask() { sql -c "$1" 2>&1; }
down() { as_user pg_ctl -D /mnt/data -w -t 120 -m fast stop >/run/u/ctl 2>&1; }
said() {
    cat /run/u/ctl /run/u/server 2>/dev/null >/run/u/said
    { grep -E 'FATAL|PANIC|invalid page|could not|terminated by signal' /run/u/said || cat /run/u/said; } | tail -n 3 | cut -c1-200 | tr '\n' ' '
}
echo 'postgres:x:1000:1000::/run/u:/bin/sh' >/etc/passwd
mkdir -p /run/u && chown 1000:1000 /run/u || exit 2

case $1 in
setup)
    mkdir /mnt/data && chown 1000:1000 /mnt/data || exit 2
    as_user initdb -D /mnt/data -A trust -E UTF8 --locale=C --data-checksums --no-sync --no-instructions \
        --wal-segsize=1 -U postgres >/run/u/log 2>&1 || failed "initdb: $(tail -n 5 /run/u/log)"
    server || failed "the server does not start: $(said)"
    as_user createdb -h /run/u t || failed "cannot load: $(said)"
    sql -c 'create extension amcheck' -c 'create table ledger (id int primary key)' \
        -c 'create table a (id int primary key, n int not null, pad char(240) not null)' \
        -c "insert into a select i, 0, repeat('0', 240) from generate_series(1, $rows) i" \
        -c 'vacuum freeze analyze' || failed "cannot load: $(said)"
    down || failed "the server does not shut down: $(said)"
    ;;
run)
    server || failed "the server does not start: $(said)"
    sql -c "select 'version ' || version()" -c "select name, setting from pg_settings where name in
        ('full_page_writes', 'debug_io_direct', 'data_checksums', 'block_size', 'fsync', 'synchronous_commit',
         'wal_sync_method', 'shared_buffers', 'backend_flush_after', 'bgwriter_flush_after')"
    transactions $rows $each "update a set n = %d, pad = repeat(chr(65 + %d %% 26), 240) where id in (%s)" \
        '\\! tornblk-mark "acknowledged %d"' >/run/u/transactions
    sql -f /run/u/transactions || failed "cannot update: $(said)"
    [ "$(ask 'select count(*) from ledger')" = $TORNBLK_TRANSACTIONS ] || failed "the ledger is not whole"
    # Time for the background writer; then no goodbye.
    sleep 2
    as_user pg_ctl -D /mnt/data -m immediate stop >/dev/null 2>&1
    ;;
check)
    if ! server; then
        # It says so itself where it is the disk's fault; anything else may be the machine's.
        ! grep -qE 'signal 9|ut of memory|annot allocate memory|No space left on device' /run/u/server ||
            failed "$(said)"
        ! grep -q 'did not start in time' /run/u/ctl || failed "the server is still starting"
        grep -qE 'PANIC|FATAL|invalid page|corrupt|terminated by signal' /run/u/server ||
            failed "the server does not start, and does not say why: $(said)"
        refused "$(said)"
    fi
    whole $rows $each "id || ' ' || n" "repeat(chr(65 + n % 26), 240)" "repeat('0', 240)"
    wrong=$(as_user pg_amcheck -h /run/u --heapallindexed -d t 2>&1) || corrupt "pg_amcheck: $(shorter "$wrong")"
    if ! down; then
        ! grep -q 'does not shut down' /run/u/ctl || failed "the server is still shutting down"
        corrupt "the server does not shut down: $(said)"
    fi
    wrong=$(as_user pg_checksums --check -D /mnt/data 2>&1) || corrupt "pg_checksums: $(shorter "$wrong")"
    nothing_lost
    ;;
esac
