//! The grid: which databases, with which settings, on which file systems.

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

    pub fn mkfs(self) -> Vec<String> {
        let words: &[&str] = match self {
            Ground::Ext4 => &["mkfs.ext4", "-q", "-F", "-b", "4096"],
            Ground::Ext4Bigalloc => {
                &["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "bigalloc", "-C", "16384"]
            }
            Ground::Xfs => &["mkfs.xfs", "-q", "-f"],
            Ground::Xfs16k => &["mkfs.xfs", "-q", "-f", "-b", "size=16k"],
        };
        words.iter().chain(&["{device}"]).map(|word| (*word).to_owned()).collect()
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
    /// A journal that is not waited for.
    NotWaited,
}

/// A database with a setting on a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl Cell {
    pub fn is_protected(&self) -> bool {
        matches!(self.protection, Protection::On | Protection::Journal)
    }

    /// "MariaDB with innodb_doublewrite=OFF, ... on ext4 ..."
    pub fn told(&self) -> String {
        format!("{} with {} on {}", self.database.name(), self.setting, self.ground.told())
    }
}

/// Those of a quick run.
const QUICK: [&str; 6] = [
    "mariadb-on-direct-ext4",
    "mariadb-off-direct-ext4",
    "mariadb-off-direct-bigalloc16k",
    "mariadb-off-buffered-ext4",
    "postgres-off-direct-xfs",
    "sqlite-wal-normal-ext4",
];

/// All of them; those of a quick run are marked.
pub fn cells() -> Vec<Cell> {
    let mut all = Vec::new();
    let env = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let servers = [
        (Database::MariaDb, "mariadb", ["ON", "OFF"], ["O_DIRECT", "fsync"]),
        (Database::Postgres, "postgres", ["on", "off"], ["data", ""]),
    ];
    for (database, short, switch, method) in servers {
        for (on, switch) in [(true, switch[0]), (false, switch[1])] {
            for (direct, method) in [(true, method[0]), (false, method[1])] {
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
                for ground in Ground::ALL {
                    let name = [
                        short,
                        if on { "on" } else { "off" },
                        if direct { "direct" } else { "buffered" },
                        ground.name(),
                    ];
                    let name = name.join("-");
                    all.push(Cell {
                        quick: QUICK.contains(&name.as_str()),
                        name,
                        database,
                        setting: setting.clone(),
                        env: env.clone(),
                        ground,
                        protection: if on { Protection::On } else { Protection::Off },
                        buffered: !direct,
                        may_lose: false,
                    });
                }
            }
        }
    }
    for journal in ["delete", "truncate", "persist", "wal"] {
        for sync in ["off", "normal", "full", "extra"] {
            for ground in Ground::ALL {
                // Its directory is synced with EXTRA only; a log only at checkpoints with NORMAL, as a
                // journal that was cut short is not (pager.c, pager_end_transaction: fullSync).
                let may_lose = match (journal, sync) {
                    (_, "off") | ("wal" | "truncate", "normal") => true,
                    ("delete", sync) => sync != "extra",
                    _ => false,
                };
                let name = format!("sqlite-{journal}-{sync}-{}", ground.name());
                all.push(Cell {
                    quick: QUICK.contains(&name.as_str()),
                    name,
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
                });
            }
        }
    }
    all
}
