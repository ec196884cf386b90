// The writer and the checker of ci/examples/rocksdb. Both begin in the folder of the disk under test.
//
//   rocksdb write   transactions in db/: each gives all accounts its own number, adds an entry to a journal, and takes the oldest
//                   entry away. Every second one is synced, and then marked: `put N`.
//   rocksdb check   the accounts are all of one transaction, the journal ends with that one, nothing else is there, and it is not
//                   older than the last that was marked.
//
// HOW=sync (the default); the others break what the marks claim: nosync (nothing is synced), nowal (there is no log).
#include <rocksdb/c.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TRANSACTIONS = 24, ACCOUNTS = 8, JOURNAL = 10, VALUE = 512, JOURNAL_ENTRY = 100 };

// FAILED: nothing could be looked at, which is no verdict. Any other status is one, a crash's too.
enum { UNSOUND = 1, FAILED = 126 };

static void end(int status, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    vprintf(format, rest);
    va_end(rest);
    printf("\n");
    fflush(stdout);
    // Threads of the database still run: nobody waits for them.
    _Exit(status);
}

// A value tells the transaction that it is of, and differs in every byte's place.
static void fill(char value[VALUE], unsigned transaction, unsigned key) {
    uint32_t x = transaction * 2654435761u ^ (key + 1) * 40503u;
    int head = snprintf(value, VALUE, "%08u %08u ", transaction, key);
    for (int i = head; i < VALUE; i++) {
        x = x * 1664525u + 1013904223u;
        value[i] = (char)(x >> 24);
    }
}

static size_t account(char name[32], unsigned n) { return (size_t)snprintf(name, 32, "account/%u", n); }
static size_t entry(char name[32], unsigned n) { return (size_t)snprintf(name, 32, "journal/%04u", n); }

static rocksdb_t *open_db(bool create) {
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, create);
    // What it writes about itself is no part of the database, and would make most of the states.
    rocksdb_options_set_info_log_level(options, 4);
    rocksdb_options_set_stats_dump_period_sec(options, 0);
    char *error = NULL;
    rocksdb_t *db = rocksdb_open(options, "db", &error);
    if (error) end(UNSOUND, "the database cannot be opened: %s", error);
    return db;
}

static void mark(const char *format, unsigned n) {
    char name[64], line[96];
    snprintf(name, sizeof name, format, n);
    snprintf(line, sizeof line, "tornblk-mark '%s'", name);
    if (system(line) != 0) end(FAILED, "%s failed", line);
}

static void write_all(void) {
    const char *how = getenv("HOW");
    if (!how) how = "sync";
    bool sync = !strcmp(how, "sync"), nowal = !strcmp(how, "nowal");
    if (!sync && !nowal && strcmp(how, "nosync")) end(FAILED, "HOW is sync, nosync or nowal, not %s", how);
    rocksdb_t *db = open_db(true);
    mark("created", 0);
    rocksdb_writeoptions_t *options = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(options, nowal);
    char *error = NULL, name[32], value[VALUE];
    for (unsigned n = 1; n <= TRANSACTIONS; n++) {
        rocksdb_writebatch_t *batch = rocksdb_writebatch_create();
        for (unsigned k = 0; k < ACCOUNTS; k++) {
            fill(value, n, k);
            rocksdb_writebatch_put(batch, name, account(name, k), value, VALUE);
        }
        fill(value, n, JOURNAL_ENTRY);
        rocksdb_writebatch_put(batch, name, entry(name, n), value, VALUE);
        if (n > JOURNAL) rocksdb_writebatch_delete(batch, name, entry(name, n - JOURNAL));
        bool asked = n % 2 == 0;
        rocksdb_writeoptions_set_sync(options, sync && asked);
        rocksdb_write(db, options, batch, &error);
        if (error) end(FAILED, "transaction %u: %s", n, error);
        rocksdb_writebatch_destroy(batch);
        if (asked) mark("put %u", n);
        // A table, a new log; a compaction that removes tables.
        if (n % 8 == 0 && !nowal) {
            rocksdb_flushoptions_t *flush = rocksdb_flushoptions_create();
            rocksdb_flush(db, flush, &error);
            if (error) end(FAILED, "the flush after transaction %u: %s", n, error);
            rocksdb_flushoptions_destroy(flush);
        }
        if (n == 16 && !nowal) rocksdb_compact_range(db, NULL, 0, NULL, 0);
    }
    rocksdb_close(db);
}

// The last of the marks `put N`; 0 where there is none. `created`: there is that mark.
static unsigned promised(bool *created) {
    const char *path = getenv("TORNBLK_MARKS");
    FILE *marks = path ? fopen(path, "r") : NULL;
    if (!marks) end(FAILED, "there is no file $TORNBLK_MARKS");
    char line[600];
    unsigned last = 0, n;
    while (fgets(line, sizeof line, marks)) {
        if (!strcmp(line, "created\n")) *created = true;
        if (sscanf(line, "put %u", &n) == 1 && n > last) last = n;
    }
    fclose(marks);
    return last;
}

static bool is(const char *key, size_t len, const char *name, size_t name_len) {
    return len == name_len && !memcmp(key, name, len);
}

static void check_all(void) {
    bool created = false;
    unsigned last = promised(&created);
    rocksdb_t *db = open_db(!created);
    rocksdb_readoptions_t *options = rocksdb_readoptions_create();
    rocksdb_readoptions_set_verify_checksums(options, 1);
    rocksdb_iterator_t *all = rocksdb_create_iterator(db, options);
    char name[32], value[VALUE];
    unsigned now = 0, accounts = 0, entries = 0;
    // In the order of keys: account/0, account/1, ..., then the journal.
    for (rocksdb_iter_seek_to_first(all); rocksdb_iter_valid(all); rocksdb_iter_next(all)) {
        size_t key_len, len;
        const char *key = rocksdb_iter_key(all, &key_len), *found = rocksdb_iter_value(all, &len);
        if (len != VALUE) end(UNSOUND, "%.*s has %zu bytes", (int)key_len, key, len);
        unsigned of = 0;
        memcpy(value, found, VALUE);
        value[8] = 0;
        sscanf(value, "%u", &of);
        unsigned place;
        if (accounts < ACCOUNTS) {
            if (accounts == 0) now = of;
            if (!is(key, key_len, name, account(name, accounts))) end(UNSOUND, "%s is missing: %.*s is there", name, (int)key_len, key);
            if (of != now) end(UNSOUND, "a transaction in part: account/0 is of %u, %s of %u", now, name, of);
            place = accounts++;
        } else {
            unsigned first = now > JOURNAL ? now - JOURNAL + 1 : 1;
            if (!is(key, key_len, name, entry(name, first + entries)))
                end(UNSOUND, "the accounts are of transaction %u, and instead of %s there is %.*s", now, name, (int)key_len, key);
            if (of != first + entries) end(UNSOUND, "%s is of transaction %u", name, of);
            entries++;
            place = JOURNAL_ENTRY;
        }
        fill(value, of, place);
        if (memcmp(value, found, VALUE)) end(UNSOUND, "%s is not what transaction %u wrote", name, of);
    }
    char *error = NULL;
    rocksdb_iter_get_error(all, &error);
    if (error) end(UNSOUND, "the database cannot be read: %s", error);
    if (accounts != 0 && accounts != ACCOUNTS) end(UNSOUND, "only %u of %u accounts are there", accounts, ACCOUNTS);
    if (entries != (now < JOURNAL ? now : JOURNAL))
        end(UNSOUND, "the accounts are of transaction %u, and the journal has %u entries", now, entries);
    if (now < last) end(UNSOUND, "transaction %u was acknowledged, and the database is at %u", last, now);
    end(0, "at transaction %u, acknowledged: %u", now, last);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "write")) write_all();
    else if (argc == 2 && !strcmp(argv[1], "check")) check_all();
    else end(FAILED, "usage: rocksdb write|check");
    return 0;
}
