//! The grid: which databases, with which settings, on which file systems.

use super::{RECOVERIES, SQLITE_RECOVERIES};
use crate::explore::Pages;
use crate::oracle::pages::PageFormat;
use serde::{Deserialize, Serialize};

/// A server does not stop where these are the distribution's tools, or what nobody needs without one.
const WITHOUT: [&str; 26] = [
    "adduser",
    "debconf",
    "galera-4",
    "gawk",
    "init-system-helpers",
    "iproute2",
    "libconfig-inifiles-perl",
    "libdbi-perl",
    "libllvm19",
    "libz3-4",
    "locales",
    "lsb-base",
    "mount",
    "passwd",
    "perl",
    "perl-base",
    "postgresql-client-common",
    "postgresql-common",
    "procps",
    "psmisc",
    "rsync",
    "socat",
    "ssl-cert",
    "systemd",
    "sysvinit-utils",
    "ucf",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Database {
    MariaDb,
    Postgres,
    Sqlite,
}

impl Database {
    pub fn name(self) -> &'static str {
        match self {
            Database::MariaDb => "MariaDB",
            Database::Postgres => "PostgreSQL",
            Database::Sqlite => "SQLite",
        }
    }

    /// The shell program, without [`ENTER`].
    pub fn program(self) -> &'static str {
        match self {
            Database::MariaDb => include_str!("mariadb.sh"),
            Database::Postgres => include_str!("postgres.sh"),
            Database::Sqlite => include_str!("sqlite.sh"),
        }
    }

    /// Debian's packages, and those of their dependencies that are left out.
    pub fn packages(self) -> (Vec<&'static str>, &'static [&'static str]) {
        let mut packages = vec!["base-files", "coreutils", "dash", "grep", "mawk", "sed"];
        packages.extend_from_slice(match self {
            Database::MariaDb => &["mariadb-server-core", "mariadb-client-core"],
            Database::Postgres => &["postgresql-17", "postgresql-client-17"],
            Database::Sqlite => &["sqlite3"],
        });
        (packages, &WITHOUT)
    }

    /// The one whose version is told.
    pub fn package(self) -> &'static str {
        match self {
            Database::MariaDb => "mariadb-server-core",
            Database::Postgres => "postgresql-17",
            Database::Sqlite => "sqlite3",
        }
    }

    /// Bytes of a page, and its files, for the audit.
    pub fn pages(self) -> (u64, Vec<String>) {
        match self.judged() {
            Some(Pages { page_size, files, .. }) => (page_size, files),
            None => (4096, vec!["t.db".to_owned()]),
        }
    }

    /// Pages that say by themselves that they are torn; SQLite's have no checksums.
    pub fn judged(self) -> Option<Pages> {
        match self {
            Database::MariaDb => Some(Pages {
                files: vec!["*.ibd".to_owned(), "ibdata1".to_owned()],
                ..Pages::of(PageFormat::Innodb)
            }),
            Database::Postgres => Some(Pages::of(PageFormat::Postgres)),
            Database::Sqlite => None,
        }
    }
}

/// What it lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ground {
    Ext4,
    Ext4Bigalloc,
    Xfs,
    Xfs16k,
}

impl Ground {
    pub const ALL: [Ground; 4] = [Ground::Ext4, Ground::Ext4Bigalloc, Ground::Xfs, Ground::Xfs16k];

    /// In names of cells.
    pub fn name(self) -> &'static str {
        match self {
            Ground::Ext4 => "ext4",
            Ground::Ext4Bigalloc => "bigalloc16k",
            Ground::Xfs => "xfs",
            Ground::Xfs16k => "xfs16k",
        }
    }

    /// In sentences.
    pub fn told(self) -> &'static str {
        match self {
            Ground::Ext4 => "ext4 with blocks of 4 KiB",
            Ground::Ext4Bigalloc => "ext4 with bigalloc, clusters of 16 KiB",
            Ground::Xfs => "XFS with blocks of 4 KiB",
            Ground::Xfs16k => "XFS with blocks of 16 KiB",
        }
    }

    pub fn fstype(self) -> &'static str {
        match self {
            Ground::Ext4 | Ground::Ext4Bigalloc => "ext4",
            Ground::Xfs | Ground::Xfs16k => "xfs",
        }
    }

    /// What ext4 puts where also depends on numbers that mkfs draws (the hash of names chooses a folder's
    /// group: ext4's find_group_orlov), so these come from the seed.
    pub fn mkfs(self, seed: u64) -> Vec<String> {
        let uuid = format!("{:08x}-0000-4000-8000-{:012x}", seed >> 48, seed & 0xffff_ffff_ffff);
        let ext4 = ["mkfs.ext4", "-q", "-F", "-U", &uuid, "-E", &format!("hash_seed={uuid}"), "-b"];
        let xfs = ["mkfs.xfs", "-q", "-f", "-m", &format!("uuid={uuid}")];
        let (begin, rest): (&[&str], &[&str]) = match self {
            Ground::Ext4 => (&ext4, &["4096"]),
            Ground::Ext4Bigalloc => (&ext4, &["4096", "-O", "bigalloc", "-C", "16384"]),
            Ground::Xfs => (&xfs, &[]),
            Ground::Xfs16k => (&xfs, &["-b", "size=16k"]),
        };
        let words = begin.iter().chain(rest).chain(&["{device}"]);
        words.map(|word| (*word).to_owned()).collect()
    }

    /// Bytes that it allocates at once, at a multiple of as many.
    pub fn unit(self) -> u64 {
        match self {
            Ground::Ext4 | Ground::Xfs => 4096,
            Ground::Ext4Bigalloc | Ground::Xfs16k => 16384,
        }
    }

    /// Bytes of a block: no logical block of its disk may be larger.
    fn block(self) -> u32 {
        match self {
            Ground::Ext4 | Ground::Ext4Bigalloc | Ground::Xfs => 4096,
            Ground::Xfs16k => 16384,
        }
    }

    /// Bytes of the disk.
    pub fn size(self) -> u64 {
        match self {
            Ground::Ext4 | Ground::Ext4Bigalloc => 192 << 20,
            // mkfs.xfs makes none below 300 MiB.
            Ground::Xfs | Ground::Xfs16k => 320 << 20,
        }
    }
}

/// What keeps torn pages from harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Each page is written twice, or whole into the log.
    On,
    /// Nothing but the disk.
    Off,
    /// The old content goes into a journal, or the new one into a log, before a page is overwritten.
    Journal,
    /// One of them that is not waited for.
    NotWaited,
}

/// A database with a setting on a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// `mariadb-off-direct-bigalloc16k`
    pub name: String,
    pub database: Database,
    /// As its manual says it.
    pub setting: String,
    pub env: Vec<(String, String)>,
    pub ground: Ground,
    pub protection: Protection,
    /// Pages go through the page cache, which promises nothing: it may write one out in two halves, or
    /// while it is being changed, whatever was seen.
    pub buffered: bool,
    /// Acknowledged transactions may be gone, as its manual says.
    pub may_lose: bool,
    /// One of the few of a quick run.
    pub quick: bool,
    /// Of [`OWN`](super::OWN), those that a quick run tries.
    pub quick_own: Vec<&'static str>,
}

impl Cell {
    /// Why it cannot lie on a disk with logical blocks of so many bytes.
    pub fn cannot_lie_on(&self, lb_size: u32) -> Option<String> {
        let kib = |bytes: u64| bytes >> 10;
        let (block, (page, _)) = (self.ground.block(), self.database.pages());
        if block < lb_size {
            return Some(format!(
                "{} cannot lie on logical blocks of {} KiB",
                self.ground.told(),
                kib(lb_size.into())
            ));
        }
        (!self.buffered && page < u64::from(lb_size)).then(|| {
            format!(
                "O_DIRECT writes no page of {} KiB to logical blocks of {} KiB",
                kib(page),
                kib(lb_size.into())
            )
        })
    }

    /// States from which the server recovers, for each disk. SQLite has no server that takes long to start,
    /// and no checksums that would find what is torn without it.
    pub fn recoveries(&self) -> usize {
        match self.database.judged() {
            Some(_) => RECOVERIES,
            None => SQLITE_RECOVERIES,
        }
    }

    pub fn is_protected(&self) -> bool {
        matches!(self.protection, Protection::On | Protection::Journal)
    }

    /// "MariaDB with innodb_doublewrite=OFF, ... on ext4 ..."
    pub fn told(&self) -> String {
        format!("{} with {} on {}", self.database.name(), self.setting, self.ground.told())
    }
}

/// Those of a quick run, each with the disks that need a recording of their own.
const QUICK: [(&str, &[&str]); 6] = [
    ("mariadb-on-direct-ext4", &[]),
    ("mariadb-off-direct-ext4", &["lb4k"]),
    ("mariadb-off-direct-xfs16k", &["lba16k"]),
    ("mariadb-off-buffered-ext4", &[]),
    ("postgres-off-direct-bigalloc16k", &[]),
    ("sqlite-wal-normal-ext4", &[]),
];

/// All of them; those of a quick run are marked.
pub fn cells() -> Vec<Cell> {
    let mut all = servers();
    all.extend(sqlite());
    for cell in &mut all {
        if let Some((_, own)) = QUICK.iter().find(|(name, _)| *name == cell.name) {
            (cell.quick, cell.quick_own) = (true, own.to_vec());
        }
    }
    all
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn servers() -> Vec<Cell> {
    use Protection::{NotWaited, Off, On};
    let mut all = Vec::new();
    let mariadb: &[_] = &[("on", "ON", On), ("fast", "fast", NotWaited), ("off", "OFF", Off)];
    let postgres: &[_] = &[("on", "on", On), ("off", "off", Off)];
    let servers = [
        (Database::MariaDb, "mariadb", mariadb, ["O_DIRECT", "fsync"]),
        (Database::Postgres, "postgres", postgres, ["data", ""]),
    ];
    for (database, short, switches, methods) in servers {
        for (word, switch, protection) in switches {
            for (how, method) in ["direct", "buffered"].into_iter().zip(methods) {
                let (setting, env) = match database {
                    Database::Postgres => (
                        format!("full_page_writes={switch}, debug_io_direct='{method}'"),
                        env(&[("FPW", switch), ("DIRECT", method)]),
                    ),
                    _ => (
                        format!("innodb_doublewrite={switch}, innodb_flush_method={method}"),
                        env(&[("DOUBLEWRITE", switch), ("METHOD", method)]),
                    ),
                };
                all.extend(Ground::ALL.map(|ground| Cell {
                    name: [short, word, how, ground.name()].join("-"),
                    database,
                    setting: setting.clone(),
                    env: env.clone(),
                    ground,
                    protection: *protection,
                    buffered: how == "buffered",
                    may_lose: false,
                    quick: false,
                    quick_own: Vec::new(),
                }));
            }
        }
    }
    all
}

fn sqlite() -> Vec<Cell> {
    let mut all = Vec::new();
    for journal in ["delete", "truncate", "persist", "wal"] {
        for sync in ["off", "normal", "full", "extra"] {
            // Its directory is synced with EXTRA only; a log only at checkpoints with NORMAL, as a journal
            // that was cut short is not (pager.c, pager_end_transaction: fullSync).
            let may_lose = match (journal, sync) {
                (_, "off") | ("wal" | "truncate", "normal") => true,
                ("delete", sync) => sync != "extra",
                _ => false,
            };
            all.extend(Ground::ALL.map(|ground| Cell {
                name: format!("sqlite-{journal}-{sync}-{}", ground.name()),
                database: Database::Sqlite,
                setting: format!("journal_mode={journal}, synchronous={sync}"),
                env: env(&[("JOURNAL", journal), ("SYNC", sync)]),
                ground,
                protection: match sync {
                    "off" => Protection::NotWaited,
                    _ => Protection::Journal,
                },
                buffered: true,
                may_lose,
                quick: false,
                quick_own: Vec::new(),
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::OWN;
    use super::*;

    #[test]
    fn the_grid_is_what_the_manual_says() {
        let all = cells();
        let count = |start: &str| all.iter().filter(|cell| cell.name.starts_with(start)).count();
        assert_eq!([count("mariadb"), count("postgres"), count("sqlite")], [24, 16, 64]);
        let quick: Vec<&str> = all.iter().filter(|c| c.quick).map(|c| c.name.as_str()).collect();
        assert_eq!(quick.len(), QUICK.len(), "{quick:?}");
        let names: std::collections::BTreeSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        for own in all.iter().flat_map(|cell| &cell.quick_own) {
            assert!(OWN.contains(own), "{own}");
        }
    }

    #[test]
    fn what_cannot_lie_on_a_disk_says_why() {
        let why = |name: &str, lb_size: u32| {
            let cell = cells().into_iter().find(|cell| cell.name == name).unwrap();
            cell.cannot_lie_on(lb_size)
        };
        for name in ["mariadb-off-direct-ext4", "postgres-off-direct-xfs", "sqlite-wal-off-xfs16k"]
        {
            assert_eq!((why(name, 512), why(name, 4096)), (None, None), "{name}");
        }
        assert_eq!(
            why("mariadb-off-direct-bigalloc16k", 16384).unwrap(),
            "ext4 with bigalloc, clusters of 16 KiB cannot lie on logical blocks of 16 KiB"
        );
        assert_eq!(why("mariadb-off-direct-xfs16k", 16384), None);
        assert_eq!(why("postgres-off-buffered-xfs16k", 16384), None);
        let why = why("postgres-off-direct-xfs16k", 16384).unwrap();
        assert_eq!(why, "O_DIRECT writes no page of 8 KiB to logical blocks of 16 KiB");
    }

    #[test]
    fn a_file_system_is_of_its_seed() {
        for ground in Ground::ALL {
            // Another one makes another.
            assert_ne!(ground.mkfs(7), ground.mkfs(8));
            assert_eq!(ground.mkfs(7).last().unwrap(), "{device}");
        }
    }
}
