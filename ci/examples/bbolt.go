// The writer and the checker of ci/examples/bbolt. Both begin in the folder of the disk under test.
//
//	bbolt write   transactions in the file bolt: each gives all accounts its own number, adds an entry to a journal, and takes the
//	              oldest entry away; when its commit has returned it is marked: `put N`.
//	bbolt check   bbolt's own check has nothing to say, the accounts are all of one transaction, the journal ends with that one,
//	              nothing else is there, and it is not older than the last that was marked.
//
// HOW=sync (the default), or nosync, which breaks what the marks claim: nothing is synced.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	transactions = 24
	accounts     = 8
	journal      = 10
	valueLen     = 512
	journalEntry = 100
	file         = "bolt"
)

// failed: nothing could be looked at, which is no verdict. Any other status is one, a panic's too.
const (
	unsound = 1
	failed  = 126
)

func end(status int, format string, args ...interface{}) {
	fmt.Printf(format+"\n", args...)
	os.Exit(status)
}

// A value tells the transaction that it is of, and differs in every byte's place.
func value(transaction, key uint32) []byte {
	out := make([]byte, valueLen)
	binary.BigEndian.PutUint32(out, transaction)
	x := transaction*2654435761 ^ (key+1)*40503
	for i := 4; i < valueLen; i++ {
		x = x*1664525 + 1013904223
		out[i] = byte(x >> 24)
	}
	return out
}

func account(n uint32) []byte { return []byte(fmt.Sprintf("account/%d", n)) }
func entry(n uint32) []byte   { return []byte(fmt.Sprintf("journal/%04d", n)) }

func open() (*bolt.DB, error) {
	return bolt.Open(file, 0o644, &bolt.Options{Timeout: 10 * time.Second})
}

func mark(name string) {
	if out, err := exec.Command("tornblk-mark", name).CombinedOutput(); err != nil {
		end(failed, "tornblk-mark %s: %v: %s", name, err, out)
	}
}

func writeAll() {
	db, err := open()
	if err != nil {
		end(failed, "the database cannot be made: %v", err)
	}
	switch how := os.Getenv("HOW"); how {
	case "", "sync":
	case "nosync":
		db.NoSync = true
	default:
		end(failed, "HOW is sync or nosync, not %s", how)
	}
	mark("created")
	for n := uint32(1); n <= transactions; n++ {
		err := db.Update(func(tx *bolt.Tx) error {
			all, err := tx.CreateBucketIfNotExists([]byte("all"))
			if err != nil {
				return err
			}
			for k := uint32(0); k < accounts; k++ {
				if err := all.Put(account(k), value(n, k)); err != nil {
					return err
				}
			}
			if n > journal {
				if err := all.Delete(entry(n - journal)); err != nil {
					return err
				}
			}
			return all.Put(entry(n), value(n, journalEntry))
		})
		if err != nil {
			end(failed, "transaction %d: %v", n, err)
		}
		mark(fmt.Sprintf("put %d", n))
	}
	if err := db.Close(); err != nil {
		end(failed, "%v", err)
	}
}

// The last of the marks `put N`, 0 where there is none; and whether there is `created`.
func promised() (last uint32, created bool) {
	marks, err := os.ReadFile(os.Getenv("TORNBLK_MARKS"))
	if err != nil {
		end(failed, "%v", err)
	}
	for _, line := range strings.Split(string(marks), "\n") {
		var n uint32
		if _, err := fmt.Sscanf(line, "put %d", &n); err == nil && n > last {
			last = n
		}
		created = created || line == "created"
	}
	return last, created
}

// What is in the database; the number of the transaction that it is at.
func look(tx *bolt.Tx) (uint32, error) {
	for err := range tx.Check() {
		return 0, fmt.Errorf("bbolt's own check: %w", err)
	}
	all := tx.Bucket([]byte("all"))
	if all == nil {
		return 0, nil
	}
	var now, place uint32
	var expected [][]byte
	first := func() uint32 {
		if now > journal {
			return now - journal + 1
		}
		return 1
	}
	err := all.ForEach(func(key, found []byte) error {
		if len(found) != valueLen {
			return fmt.Errorf("%s has %d bytes", key, len(found))
		}
		of := binary.BigEndian.Uint32(found)
		if place == 0 {
			// The number that the first has is the number of all.
			now = of
			for k := uint32(0); k < accounts; k++ {
				expected = append(expected, account(k))
			}
			for n := first(); n <= now && n < first()+journal; n++ {
				expected = append(expected, entry(n))
			}
		}
		if int(place) >= len(expected) || !bytes.Equal(key, expected[place]) {
			return fmt.Errorf("the first account is of transaction %d, and %s is not what comes next", now, key)
		}
		want, which := value(now, place), place
		if place >= accounts {
			which = first() + place - accounts
			want = value(which, journalEntry)
		}
		if !bytes.Equal(found, want) {
			return fmt.Errorf("a transaction in part: the first account is of %d, %s of %d", now, key, of)
		}
		place++
		return nil
	})
	if err == nil && int(place) != len(expected) {
		err = fmt.Errorf("at transaction %d there are %d keys instead of %d", now, place, len(expected))
	}
	return now, err
}

func checkAll() {
	last, created := promised()
	if _, err := os.Stat(file); os.IsNotExist(err) {
		if created {
			end(unsound, "the database was made, and is not there")
		}
		end(0, "there is no database yet")
	}
	db, err := open()
	if err != nil {
		end(unsound, "the database cannot be opened: %v", err)
	}
	var now uint32
	// As a writer: that is what opens it after a crash.
	err = db.Update(func(tx *bolt.Tx) (err error) {
		now, err = look(tx)
		return err
	})
	if err != nil {
		end(unsound, "%v", err)
	}
	if now < last {
		end(unsound, "transaction %d was acknowledged, and the database is at %d", last, now)
	}
	end(0, "at transaction %d, acknowledged: %d", now, last)
}

func main() {
	// What bbolt meets in pages that are not sound it may say with a panic; one of another goroutine ends this with 2.
	defer func() {
		if e := recover(); e != nil {
			end(unsound, "bbolt panics: %v", e)
		}
	}()
	switch {
	case len(os.Args) == 2 && os.Args[1] == "write":
		writeAll()
	case len(os.Args) == 2 && os.Args[1] == "check":
		checkAll()
	default:
		end(failed, "usage: bbolt write|check")
	}
}
