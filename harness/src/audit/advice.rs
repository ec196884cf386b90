//! What to try where pages may be torn, by what became of them and how the disk was used.

use super::{Audit, Fate, PageWrite, PageWrites};
use crate::explore::Opened;
use tornblk_model::crash::{Profile, size};

/// How the disk was used, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// As the kernel calls it; empty: none, or nobody knows.
    pub fstype: String,
    pub mkfs: String,
    /// Of sysfs' `queue/`.
    pub queue: std::collections::BTreeMap<String, String>,
}

impl Used {
    /// As the recording says it.
    pub fn of(opened: &Opened) -> Used {
        let Some(subject) = &opened.subject else { return Used::default() };
        let environment = subject.environment.clone().unwrap_or_default();
        Used {
            fstype: subject.volume.fstype.clone(),
            mkfs: environment.mkfs,
            queue: environment.queue,
        }
    }
}

/// Sentences, the most telling first.
pub fn advice(audit: &Audit, pages: &PageWrites, profile: &Profile, used: &Used) -> Vec<String> {
    let mut told = Vec::new();
    let page = pages.page_size;
    let long = size::print(page);
    let has = |fate| audit.of(fate) > 0;
    let was = |name: &str| used.queue.get(name).map_or(String::new(), |v| format!(" (was: {v})"));
    if has(Fate::Split) || has(Fate::InPart) || has(Fate::Misaligned) || has(Fate::Boundary) {
        let scattered = pages.writes.iter().filter(|w| !lies_well(w, page)).count();
        if scattered > 0 {
            told.push(format!(
                "{scattered} of them are of pages that do not lie in one place on the disk, at a multiple of \
                 {long}: {}",
                allocation(&used.fstype, page)
            ));
        }
    }
    if has(Fate::Split) || has(Fate::InPart) {
        let sectors: Option<u64> = used.queue.get("max_sectors_kb").and_then(|kb| kb.parse().ok());
        match sectors {
            Some(kb) if kb * 1024 < page => told.push(format!(
                "the kernel splits what is longer than {kb} KiB: write {} or more to queue/max_sectors_kb",
                page / 1024
            )),
            _ if pages.writes.iter().any(|w| lies_well(w, page) && w.carriers.len() > 1) => {
                told.push(format!(
                    "some lie well and were split all the same: through the page cache a page is as many \
                     writes as it has blocks; have the program use O_DIRECT, or a file system with blocks of \
                     {long}"
                ));
            }
            _ => {}
        }
    }
    if has(Fate::Merged) {
        told.push(format!(
            "the kernel put neighbours together: write 2 to queue/nomerges{}, {} to \
             queue/max_sectors_kb{}, and none to queue/scheduler{}",
            was("nomerges"),
            print_kib(profile.max_bytes),
            was("max_sectors_kb"),
            was("scheduler"),
        ));
    }
    if has(Fate::NotAtomic) {
        told.push(
            "the program has to write its pages with RWF_ATOMIC (pwritev2, io_uring): nothing else makes \
             the kernel send a write as atomic"
                .to_owned(),
        );
    }
    if has(Fate::NotPromised) {
        told.push(format!(
            "this disk keeps nothing of {long} whole: it takes one that does (req{long}, piece{long}), or \
             pages that are shorter"
        ));
    }
    told
}

fn print_kib(bytes: u64) -> String {
    (bytes / 1024).to_string()
}

/// In one place, at a multiple of its size.
fn lies_well(write: &PageWrite, page: u64) -> bool {
    write.at.is_some_and(|at| at.is_multiple_of(page))
}

fn allocation(fstype: &str, page: u64) -> String {
    let long = size::print(page);
    match fstype {
        "ext4" if page <= 4096 => {
            format!(
                "mkfs.ext4 -b {page} has blocks of that size (small file systems have smaller ones)"
            )
        }
        "ext4" => format!("mkfs.ext4 -O bigalloc -C {page} allocates nothing smaller"),
        "xfs" => format!(
            "mkfs.xfs -b size={long} allocates nothing smaller (Linux 6.12 or newer); xfs_io -c 'extsize \
             {long}' asks for it file by file"
        ),
        "btrfs" => "btrfs has no such allocation; use XFS, or ext4 with bigalloc".to_owned(),
        "" => "look where the partition begins, and how the file system allocates".to_owned(),
        other => format!("see whether {other} can allocate by {long}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Carrier, audit};
    use super::*;

    const PAGE: u64 = 16384;

    fn told(at: u64, carriers: &[(u64, u64)], profile: &str, used: &Used) -> String {
        let carrier = |(request, (offset, len)): (usize, &(u64, u64))| Carrier {
            request: request as u64,
            offset: *offset,
            len: *len,
            atomic: false,
            failed: false,
        };
        let write = PageWrite {
            file: 0,
            page: 0,
            at: Some(at),
            complete: true,
            overwrites: true,
            carriers: carriers.iter().enumerate().map(carrier).collect(),
        };
        let pages = PageWrites {
            page_size: PAGE,
            lb_size: 512,
            files: vec!["a".into()],
            writes: vec![write],
            ..PageWrites::default()
        };
        let profile = profile.parse().unwrap();
        advice(&audit(&pages, &profile), &pages, &profile, used).join("\n")
    }

    #[test]
    fn the_remedy_fits_what_happened() {
        let mut used = Used { fstype: "ext4".into(), ..Used::default() };
        used.queue.insert("nomerges".into(), "0".into());
        used.queue.insert("max_sectors_kb".into(), "1280".into());
        let says = |told: String, words: &[&str]| {
            assert!(words.iter().all(|word| told.contains(word)), "{told}");
        };
        says(told(4096, &[(4096, PAGE)], "piece16k", &used), &["bigalloc -C 16384"]);
        let used_xfs = Used { fstype: "xfs".into(), ..used.clone() };
        says(told(4096, &[(4096, PAGE)], "piece16k", &used_xfs), &["-b size=16k", "extsize"]);
        says(
            told(0, &[(0, 2 * PAGE)], "req16k", &used),
            &["nomerges (was: 0)", "16 to queue/max_sectors_kb (was: 1280)"],
        );
        says(told(0, &[(0, 8192), (8192, 8192)], "req16k", &used), &["O_DIRECT"]);
        used.queue.insert("max_sectors_kb".into(), "8".into());
        says(told(0, &[(0, 8192), (8192, 8192)], "req16k", &used), &["longer than 8 KiB"]);
        says(told(0, &[(0, PAGE)], "explicit16k", &used), &["RWF_ATOMIC"]);
        says(told(0, &[(0, PAGE)], "lb512", &used), &["keeps nothing of 16k whole"]);
        assert_eq!(told(0, &[(0, PAGE)], "req16k", &used), "");
    }
}
