//! The command line of `tornblkd`.

use clap::builder::styling::Styles;
use clap::{ArgAction, Parser, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use tornblk_backend::device::FrontEnd;
use tornblk_backend::device::blk::{QUEUE_SIZE, QUEUES, seg_max};
use tornblk_backend::device::limits::LimitOptions;
use tornblk_backend::device::scsi::{FIXED_QUEUES, FRONT_END_SEG_MAX, REQUEST_QUEUES};
use tornblk_backend::device::size::Size;
use tornblk_backend::store::{Cache, HoldCompletions, IoEngine};
use tornblk_model::crash::{AtomicMode, Fault, Profile};

const EXAMPLES: &str = "\
Examples:
  A disk that keeps 16 KiB writes whole, as a stock QEMU attaches it:
    truncate -s 1g disk.img
    tornblkd --socket /tmp/disk.sock --image disk.img --atomic-unit-max 16k
    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1g,share=on \\
        -machine q35,memory-backend=mem \\
        -chardev socket,id=disk,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=disk

  The same, recorded; the image stays as it is, and power can be cut:
    tornblkd --socket /tmp/disk.sock --image disk.img --recording disk.rec \\
        --control /tmp/disk.ctl --profile req16k --seed 7

  A SCSI disk: a stock Linux (6.11 or newer) sees its limits and marks its atomic writes:
    tornblkd --socket /tmp/disk.sock --image disk.img --front-end scsi --atomic-unit-max 64k
    qemu-system-x86_64 ... -device vhost-user-scsi-pci,chardev=disk

Sizes are bytes, or take k, m, g or t: 512, 16k, 1g (1k is 1024).
Exits with 0 after SIGTERM, SIGINT or SIGHUP, and with 2 where it cannot run.";

/// A vhost-user block device that records every request, and can tear writes as disks do when
/// their power is cut.
#[derive(Debug, Parser)]
#[command(name = "tornblkd", version, styles = Styles::plain(), after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Where the front-end (QEMU) connects; made with mode 0600, and removed at the end
    #[arg(long, value_name = "PATH", help_heading = "Disk")]
    pub(crate) socket: PathBuf,

    /// The disk: a file or a block device
    #[arg(long, value_name = "FILE", required_unless_present = "states", help_heading = "Disk")]
    pub(crate) image: Option<PathBuf>,

    /// Show the states of this recording, as use-state asks for them, and no live disk; it is only
    /// read. --image is then a copy of its base image, where that is not in its place
    #[arg(long, value_name = "FILE", conflicts_with = "recording", help_heading = "Disk")]
    pub(crate) states: Option<PathBuf>,

    /// Record every request to this file, made or, where it is a recording of this disk, continued
    /// (not after a power cut); the image stays as it is
    #[arg(long, value_name = "FILE", help_heading = "Disk")]
    pub(crate) recording: Option<PathBuf>,

    /// Record the data of writes, too. With no, the requests and marks are recorded and the image is
    /// written as without a recording: a trace, of which no state can be shown
    #[arg(long, value_name = "yes|no", default_value = "yes", requires = "recording", action = ArgAction::Set, value_parser = yes_or_no, help_heading = "Disk")]
    pub(crate) record_payload: bool,

    /// What the guest's driver sees: blk (virtio-blk, vda), or scsi (virtio-scsi, sda: target 0,
    /// LUN 0, for QEMU's vhost-user-scsi-pci)
    #[arg(long, value_name = "WHICH", default_value = "blk", help_heading = "Disk")]
    pub(crate) front_end: Which,

    /// Offer the disk read-only
    #[arg(long, help_heading = "Disk")]
    pub(crate) read_only: bool,

    /// What the host may cache: writeback (until the guest flushes), writethrough (nothing; the
    /// guest sees no volatile cache), or unsafe (flushes do nothing)
    #[arg(long, value_name = "MODE", default_value = "writeback", help_heading = "Disk")]
    pub(crate) cache: Cache,

    /// Read and write past the host's page cache (O_DIRECT), as QEMU's cache.direct=on; not with
    /// --recording, unless without data
    #[arg(long, conflicts_with = "states", help_heading = "Disk")]
    pub(crate) direct: bool,

    /// How a raw disk's bytes are moved: io_uring, sync (preadv and pwritev), or auto (io_uring where
    /// the kernel lets this process have it)
    #[arg(long, value_name = "WHICH", default_value = "auto", help_heading = "Disk")]
    pub(crate) io_engine: Engine,

    /// A queue's thread that found something looks for more for so many microseconds before it sleeps,
    /// 0 to 1000000: less latency where there are processors to spare, since each busy queue keeps one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000), help_heading = "Block sizes and queues")]
    pub(crate) poll_us: u32,

    /// Serial number, of which the guest sees 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "tornblk", value_parser = serial, help_heading = "Disk")]
    pub(crate) serial: String,

    /// Smallest unit the guest can address, and never torn: a power of two, 512 to 64k
    /// [default: 512, or what the profile demands]
    #[arg(long, value_name = "SIZE", help_heading = "Block sizes and queues")]
    pub(crate) logical_block_size: Option<Size>,

    /// A power of two, from the logical block size to 1m [default: the logical block size]
    #[arg(long, value_name = "SIZE", help_heading = "Block sizes and queues")]
    pub(crate) physical_block_size: Option<Size>,

    /// Queues offered, 1 to 64: QEMU takes one a guest CPU, and refuses fewer. With --front-end
    /// scsi 1 to 62, and two more for control and events
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(i64::from(*QUEUES.start())..=i64::from(*QUEUES.end())), help_heading = "Block sizes and queues")]
    pub(crate) num_queues: u16,

    /// Entries a queue may have: a power of two, 8 to 1024; a request has two segments less
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = queue_size, help_heading = "Block sizes and queues")]
    pub(crate) queue_size: u16,

    /// Shortest write that the guest may ask to be atomic: a power of two [default: the logical
    /// block size]
    #[arg(long, value_name = "SIZE", help_heading = "Atomic writes")]
    pub(crate) atomic_unit_min: Option<Size>,

    /// Longest write that the guest may ask to be atomic: a power of two (512k at most with the
    /// default queue size, 256k with --front-end scsi) [default: nothing is atomic above the logical block]
    #[arg(long, value_name = "SIZE", help_heading = "Atomic writes")]
    pub(crate) atomic_unit_max: Option<Size>,

    /// Longest request that is kept whole: a multiple of the logical block size [default:
    /// --atomic-unit-max]
    #[arg(long, value_name = "SIZE", help_heading = "Atomic writes")]
    pub(crate) atomic_max_bytes: Option<Size>,

    /// A request that crosses a multiple of this is not kept whole: a power of two [default: none]
    #[arg(long, value_name = "SIZE", help_heading = "Atomic writes")]
    pub(crate) atomic_boundary: Option<Size>,

    /// Which writes are kept whole: implicit (all within the limits, as on NVMe), explicit (those
    /// sent as atomic, as on SCSI; virtio-blk cannot say so), or none [default: implicit where
    /// limits are given]
    #[arg(long, value_name = "MODE", help_heading = "Atomic writes")]
    pub(crate) atomic_mode: Option<Mode>,

    /// Where other writes can be cut: a multiple of the logical block size, on the disk's own
    /// grid [default: the logical block size]
    #[arg(long, value_name = "SIZE", help_heading = "Atomic writes")]
    pub(crate) tear_unit: Option<Size>,

    /// All of the above in a word: lb512, lb4k, req16k, req16k+b16k, explicit16k, piece16k,
    /// lba16k, garbage
    #[arg(long, value_name = "NAME", help_heading = "Atomic writes")]
    pub(crate) profile: Option<Profile>,

    /// Control socket: status, limits, mark, stall, release, fault, crash, use-state, resize
    #[arg(long, value_name = "PATH", help_heading = "Faults and control")]
    pub(crate) control: Option<PathBuf>,

    /// Break a promise, such as tear-atomic,nth=3 or eio,range=1m+4k,p=0.01 or ignore-flush;
    /// can be given several times
    #[arg(long, value_name = "FAULT", action = ArgAction::Append, help_heading = "Faults and control")]
    pub(crate) fault: Vec<Fault>,

    /// Delay completions, to keep requests concurrent: N (of them in flight), idle, or random
    #[arg(long, value_name = "HOW", value_parser = hold, help_heading = "Faults and control")]
    pub(crate) hold_completions: Option<HoldCompletions>,

    /// Of everything that is drawn: the same seed and the same requests give the same faults
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Faults and control")]
    pub(crate) seed: u64,

    /// Once everything is open, give up what a disk does not need: other files, programs,
    /// networks, privileges (seccomp, landlock). off is for tools that work inside the process
    /// (sanitizers, profilers, coverage, a debugger's calls), for a kernel without seccomp, and for
    /// a C library that makes other system calls: the log names the one that was forbidden
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        env = "TORNBLKD_SANDBOX",
        hide_env_values = true,
        hide_possible_values = true,
        help_heading = "Sandbox"
    )]
    pub(crate) sandbox: Switch,

    /// With the sandbox on: a folder in which record-here may make files and recorded-here find
    /// them, besides that of the recording; can be given several times
    #[arg(long, value_name = "DIR", action = ArgAction::Append, help_heading = "Sandbox")]
    pub(crate) allow: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    Blk,
    Scsi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Sync,
}

impl From<Engine> for IoEngine {
    fn from(engine: Engine) -> IoEngine {
        match engine {
            Engine::Auto => IoEngine::Auto,
            Engine::IoUring => IoEngine::IoUring,
            Engine::Sync => IoEngine::Sync,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Implicit,
    Explicit,
    None,
}

impl Options {
    pub(crate) fn front_end(&self) -> FrontEnd {
        match self.front_end {
            Which::Blk => FrontEnd::Blk,
            Which::Scsi => FrontEnd::Scsi,
        }
    }

    /// What one option alone cannot say of itself.
    pub(crate) fn check(&self) -> Result<(), String> {
        let most = *REQUEST_QUEUES.end();
        if self.front_end == Which::Scsi && self.num_queues > most {
            return Err(format!(
                "--num-queues {} is too many with --front-end scsi, which needs two more: use \
                 {most} or fewer",
                self.num_queues
            ));
        }
        if self.direct && self.recording.is_some() && self.record_payload {
            return Err(
                "--direct is about the image, which is only read with --recording: leave one of \
                        them out, or record without data (--record-payload no)"
                    .to_owned(),
            );
        }
        let real = |path: &PathBuf| path.canonicalize().ok();
        if let (Some(image), Some(recording)) = (&self.image, &self.recording)
            && real(image).is_some_and(|image| Some(image) == real(recording))
        {
            return Err(format!(
                "--image and --recording are both {}: the recording is a file of its own",
                image.display()
            ));
        }
        if self.control.as_ref() == Some(&self.socket) {
            return Err(format!(
                "--socket and --control are both {}: they are two sockets, name two paths",
                self.socket.display()
            ));
        }
        Ok(())
    }

    /// Those of a SCSI disk for control and events included.
    pub(crate) fn queues(&self) -> u16 {
        match self.front_end {
            Which::Blk => self.num_queues,
            Which::Scsi => self.num_queues + FIXED_QUEUES,
        }
    }

    pub(crate) fn limits(&self) -> LimitOptions {
        let bytes = |size: Option<Size>| size.map(|size| size.0);
        LimitOptions {
            logical_block_size: bytes(self.logical_block_size),
            physical_block_size: bytes(self.physical_block_size),
            unit_min: bytes(self.atomic_unit_min),
            unit_max: bytes(self.atomic_unit_max),
            max_bytes: bytes(self.atomic_max_bytes),
            boundary: bytes(self.atomic_boundary),
            mode: self.atomic_mode.map(|mode| match mode {
                Mode::Implicit => AtomicMode::Implicit,
                Mode::Explicit => AtomicMode::Explicit,
                Mode::None => AtomicMode::None,
            }),
            tear_unit: bytes(self.tear_unit),
            profile: self.profile.clone(),
            seg_max: match self.front_end {
                Which::Blk => seg_max(self.queue_size),
                Which::Scsi => seg_max(self.queue_size).min(FRONT_END_SEG_MAX),
            },
            front_end: self.front_end(),
        }
    }
}

fn queue_size(text: &str) -> Result<u16, String> {
    match u16::from_str(text) {
        Ok(size) if QUEUE_SIZE.contains(&size) && size.is_power_of_two() => Ok(size),
        _ => Err(format!(
            "a queue has a power of two of entries, {} to {}, such as 256",
            QUEUE_SIZE.start(),
            QUEUE_SIZE.end()
        )),
    }
}

fn serial(text: &str) -> Result<String, String> {
    if text.is_ascii() && !text.contains(|c: char| c.is_ascii_control()) {
        Ok(text.to_owned())
    } else {
        Err("a serial number is plain ASCII".to_owned())
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_owned()),
    }
}

fn hold(text: &str) -> Result<HoldCompletions, String> {
    match text {
        "idle" => Ok(HoldCompletions::Idle),
        "random" => Ok(HoldCompletions::Random),
        _ => match text.parse() {
            Ok(0) => Ok(HoldCompletions::None),
            Ok(n) => Ok(HoldCompletions::Above(n)),
            Err(_) => Err("write a number of requests, idle, or random".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Options, clap::Error> {
        let given = "tornblkd --socket s --image i".split(' ').chain(line.split_whitespace());
        Options::try_parse_from(given)
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_examples_can_be_typed() {
        let joined = EXAMPLES.replace("\\\n", " ");
        let lines = joined.lines().map(str::trim).filter(|line| line.starts_with("tornblkd "));
        let parsed = lines.map(|line| Options::try_parse_from(line.split_whitespace()).unwrap());
        assert_eq!(parsed.filter(|options| options.check().is_ok()).count(), 3);
    }

    #[test]
    fn sizes_take_units_and_reach_the_limits() {
        let options = parse("--atomic-unit-max 64k --atomic-mode explicit --tear-unit 4k").unwrap();
        let limits = options.limits();
        assert_eq!(limits.unit_max, Some(65536));
        assert_eq!(limits.mode, Some(AtomicMode::Explicit));
        assert_eq!(limits.tear_unit, Some(4096));
        assert_eq!(limits.seg_max, 254);
        assert_eq!(options.num_queues, 16);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for line in [
            "--num-queues 0",
            "--num-queues 65",
            "--queue-size 100",
            "--queue-size 4",
            "--queue-size 2048",
            "--poll-us 1000001",
            "--record-payload maybe --recording r",
            "--record-payload no",
            "--atomic-unit-max 16q",
            "--atomic-mode maybe",
            "--cache sometimes",
            "--serial \u{e4}",
            "--hold-completions never",
            "--seed -1",
            "--unknown",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_help_says_that_a_recording_is_continued() {
        let command = Options::command();
        let recording = command.get_arguments().find(|arg| arg.get_id() == "recording");
        let help = recording.unwrap().get_help().unwrap().to_string();
        assert!(help.contains("continued") && !help.contains("new file"), "{help}");
    }

    #[test]
    fn every_option_is_grouped_and_explained() {
        for arg in Options::command().get_arguments() {
            if matches!(arg.get_id().as_str(), "help" | "version") {
                continue;
            }
            assert!(arg.get_help_heading().is_some(), "{}", arg.get_id());
            assert!(arg.get_help().is_some(), "{}", arg.get_id());
        }
    }
}
