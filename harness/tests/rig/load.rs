//! fio in the guest: four jobs, each on a processor and so on a queue of its own, that write their
//! part of the disk at random and read it back, pass after pass, until they are told to stop.
//!
//! Within a pass each block is written once (fio's random map), so that a checksum that is wrong is
//! the disk's doing: a write lost, torn, old, or elsewhere.

use super::{CPUS, Dice, Guest, Result, wait_until};
use std::time::Duration;

const FOLDER: &str = "/tmp/load";

/// What fio does.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// A file system to make and to write through; `None`: the disk itself.
    pub(crate) fs: Option<&'static str>,
    pub(crate) engine: &'static str,
    pub(crate) depth: u32,
    /// Bytes of a block, for each job.
    pub(crate) blocks: [u64; CPUS as usize],
    /// The most bytes, and the most blocks, that a job writes in a pass.
    pub(crate) most: (u64, u64),
    /// How many writes go ahead of their being read back; `None`: all of a pass.
    pub(crate) backlog: Option<u32>,
    /// A flush after so many writes.
    pub(crate) fsync: u32,
    /// Bytes that a job may use, from a multiple of it on.
    pub(crate) room: u64,
}

/// What was done by its end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) passes: u64,
    /// Read back and compared.
    pub(crate) verified: u64,
}

impl Load {
    /// Over the first `size` bytes of the disk.
    pub(crate) fn random(dice: &mut Dice, fs: Option<&'static str>, size: u64) -> Load {
        let mut blocks = [512, 4 << 10, 16 << 10, 128 << 10];
        dice.shuffle(&mut blocks);
        Load {
            fs,
            engine: dice.one(&["libaio", "io_uring"]),
            depth: dice.one(&[4, 16, 32]),
            blocks,
            // Seconds of an emulated guest, half of them fio's own start.
            most: (12 << 20, 1024),
            backlog: dice.one(&[None, Some(16)]),
            fsync: dice.one(&[0, 8, 32]),
            room: size / u64::from(CPUS),
        }
    }

    fn job_file(&self, device: &str) -> String {
        let target = match self.fs {
            Some(_) => "directory=/mnt\nfallocate=none\nend_fsync=1".to_owned(),
            None => format!("filename={device}"),
        };
        let backlog = self.backlog.map_or(String::new(), |n| format!("verify_backlog={n}\n"));
        let mut text = format!(
            "[global]\n{target}\ndirect=1\nthread=1\ngroup_reporting=1\nioengine={}\niodepth={}\n\
             rw=randwrite\nverify=crc32c\ndo_verify=1\nverify_fatal=1\nverify_state_save=0\n\
             fsync={}\n{backlog}",
            self.engine, self.depth, self.fsync,
        );
        for (cpu, block) in self.blocks.iter().enumerate() {
            let size = (block * self.most.1).min(self.most.0).min(self.room);
            text += &format!("[job{cpu}]\ncpus_allowed={cpu}\nbs={block}\nsize={size}\n");
            if self.fs.is_none() {
                text += &format!("offset={}\n", cpu as u64 * self.room);
            }
        }
        text
    }

    /// Starts it; returns at once.
    pub(crate) fn start(&self, guest: &mut Guest, seed: u64) -> Result<()> {
        let device = guest.path().to_owned();
        if let Some(fs) = self.fs {
            let options = if fs == "xfs" { "-q -f" } else { "-q -F" };
            guest.sh(&format!(
                "mkdir -p /mnt; mkfs.{fs} {options} {device}; mount -t {fs} {device} /mnt"
            ))?;
        }
        let job = self.job_file(&device);
        // The shell that goes on is nobody's child soon; it holds none of the agent's descriptors.
        guest.sh(&format!(
            "rm -rf {FOLDER}; mkdir {FOLDER}; cd {FOLDER}
cat >job <<'END'
{job}END
(
    n=0
    while [ ! -e stop ]; do
        n=$((n + 1))
        fio --output-format=terse --terse-version=3 --randseed=$(({seed} + n)) job >out 2>err || {{
            echo \"pass $n of fio: status $?\" >failed
            tail -n 20 out err >>failed
            break
        }}
        # The total of what was read, in KiB: terse_version;fio;job;group;error;KiB read;...
        tail -n 1 out | cut -d';' -f5,6 >>read
    done
    echo $n >done
) </dev/null >/dev/null 2>&1 &"
        ))?;
        Ok(())
    }

    /// A failure that is known already.
    pub(crate) fn look(guest: &mut Guest) -> Result<()> {
        let said = guest.sh(&format!("cat {FOLDER}/failed 2>/dev/null || :"))?;
        if said.is_empty() { Ok(()) } else { Err(said) }
    }

    /// Whether passes are being done: how many until now.
    pub(crate) fn passes(guest: &mut Guest) -> Result<u64> {
        let said = guest.sh(&format!("cat {FOLDER}/read 2>/dev/null | wc -l"))?;
        said.trim().parse().map_err(|_| format!("not a number of passes: {said}"))
    }

    /// Ends it after the pass that is under way, which must end well within `limit`.
    pub(crate) fn end(&self, guest: &mut Guest, limit: Duration) -> Result<Done> {
        guest.sh(&format!("touch {FOLDER}/stop"))?;
        wait_until("the end of fio", limit, || {
            let said = guest.sh(&format!("cat {FOLDER}/failed {FOLDER}/done 2>/dev/null || :"))?;
            Ok((!said.is_empty()).then_some(()))
        })
        .map_err(|e| {
            let seen = "ps | grep fio; cat /sys/block/[vs]d*/inflight || :";
            format!("{e}; in the guest: {:?}", guest.sh(seen))
        })?;
        Load::look(guest)?;
        let said = guest.sh(&format!("cat {FOLDER}/read"))?;
        let mut done = Done::default();
        for line in said.lines() {
            let (error, kib) = line.split_once(';').ok_or_else(|| format!("fio said: {line}"))?;
            if error != "0" {
                return Err(format!("fio ended well and says error {error}"));
            }
            let kib: u64 = kib.parse().map_err(|_| format!("fio said: {line}"))?;
            done.passes += 1;
            done.verified += kib << 10;
        }
        if done.verified == 0 {
            return Err("fio verified nothing".into());
        }
        if let Some(fs) = self.fs {
            let device = guest.path().to_owned();
            let check = if fs == "xfs" { "xfs_repair -n" } else { "e2fsck -fn" };
            guest.sh(&format!(
                "umount /mnt; {check} {device} >/tmp/check 2>&1 || {{ cat /tmp/check; exit 1; }}"
            ))?;
        }
        Ok(done)
    }
}
