//! `tornblkd`: see the library's documentation, and `tornblkd --help`.

mod manual;
mod options;
mod said;

use anyhow::{Context, anyhow};
use clap::Parser;
use clap::error::ErrorKind;
use env_logger::{Target, WriteStyle};
use options::{Options, Switch};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tornblk_backend::control::{Bound, Server};
use tornblk_backend::device::blk::{Blk, BlkOptions};
use tornblk_backend::device::limits::{Limits, mode_name};
use tornblk_backend::device::scsi::{Lun, Scsi, ScsiOptions};
use tornblk_backend::device::size::Size;
use tornblk_backend::device::{Device, FrontEnd};
use tornblk_backend::folder_of;
use tornblk_backend::sandbox::{self, Policy};
use tornblk_backend::store::{self, Cache, Machine, Store};
use tornblk_backend::vhost::{self, Socket};
use tornblk_model::crash::{Fault, FaultKind};
use tornblk_model::recording::Reader;

/// For everything that could not run.
const CANNOT_RUN: u8 = 2;

fn main() -> ExitCode {
    if let Some(dir) = manual::asked(std::env::args_os()) {
        return match manual::write(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tornblkd: cannot write into {}: {error}", dir.display());
                ExitCode::from(CANNOT_RUN)
            }
        };
    }
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stderr().is_terminal();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        // As it would be, were it the standard error itself.
        .write_style(if plain { WriteStyle::Never } else { WriteStyle::Always })
        .target(Target::Pipe(Box::new(said::Log)))
        .init();
    end_on_panic();
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return refused(&error),
    };
    let ran = run(options);
    said::end();
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tornblkd: {}", sentence(&error));
            ExitCode::from(CANNOT_RUN)
        }
    }
}

/// The error and its causes, each said once.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// A queue whose thread died would leave its guest waiting for ever, without a word: better that
/// the front-end sees the connection end.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// A mistake on the command line: one line, and where to read on.
fn refused(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody is there to read it where this fails.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let sentence: Vec<&str> = text
        .trim_start_matches("error: ")
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    eprintln!("tornblkd: {} (see tornblkd --help)", sentence.join(" "));
    ExitCode::from(CANNOT_RUN)
}

fn run(options: Options) -> anyhow::Result<()> {
    // Before anything that has to be undone: a signal from here on ends the program in order.
    let stop = signals().context("signals cannot be caught")?;
    let mut wanted = options.limits();
    if let Some(states) = &options.states
        && wanted.logical_block_size.is_none()
    {
        // The recording says it.
        let lb_size = Reader::open(states)?.header().disk.lb_size;
        wanted.logical_block_size = Some(lb_size.into());
    }
    options.check().map_err(anyhow::Error::msg)?;
    let limits = Limits::new(&wanted)?;
    let machine = open(&options, &limits)?;
    let started = start(&options, &limits, &machine);
    if started.is_err() {
        machine.take_back();
    }
    let (device, _control, socket) = started?;
    log::info!("{}", advertised(&options, &limits, &*device, &machine));
    socket.shows(&shown(&options));
    vhost::serve(&device, &socket, stop.as_fd(), Duration::from_micros(options.poll_us.into()))?;
    machine.look_back();
    log::info!("ended by a signal");
    Ok(())
}

/// Opens the disk.
fn open(options: &Options, limits: &Limits) -> anyhow::Result<Arc<Machine>> {
    let tears = |fault: &Fault| fault.kind == FaultKind::TearAtomic;
    if !limits.atomic() && options.fault.iter().any(tears) {
        log::warn!("--fault tear-atomic finds nothing to tear: no write on this disk is atomic");
    }
    Ok(Machine::open(store::Options {
        image: options.image.clone().unwrap_or_default(),
        states: options.states.clone(),
        recording: options.recording.clone(),
        record_payload: options.record_payload,
        profile: limits.profile.clone(),
        logical_block_size: limits.logical_block_size,
        physical_block_size: limits.physical_block_size,
        read_only: options.read_only,
        cache: options.cache,
        direct: options.direct,
        io_engine: options.io_engine.into(),
        queues: options.queues(),
        seed: options.seed,
        faults: options.fault.clone(),
        hold_completions: options.hold_completions.unwrap_or_default(),
        divided: !options.luns.is_empty(),
        serial: options.serial.clone(),
    })?)
}

/// Makes the device and both sockets, and enters the sandbox. Threads only start after that.
fn start(
    options: &Options,
    limits: &Limits,
    machine: &Arc<Machine>,
) -> anyhow::Result<(Arc<dyn Device>, Option<Server>, Socket)> {
    let identity = machine.clone();
    let store = machine.clone() as Arc<dyn Store>;
    let (limits, queue_size) = (limits.clone(), options.queue_size);
    let writeback = options.cache != Cache::Writethrough;
    let id = Box::new(move || identity.id_string());
    let device: Arc<dyn Device> = match options.front_end() {
        FrontEnd::Blk => {
            let queues = options.num_queues;
            Blk::new(BlkOptions { store, limits, queues, queue_size, writeback, id })
        }
        FrontEnd::Scsi => {
            let request_queues = options.num_queues;
            let luns = options.luns.clone();
            Lun::check(&luns, store.disk().capacity).map_err(|why| anyhow!("--lun: {why}"))?;
            Scsi::new(ScsiOptions {
                store,
                luns,
                limits,
                request_queues,
                queue_size,
                writeback,
                id,
            })
        }
    };
    vhost::can_serve(&*device)?;
    // Before the disk's socket: who sees that one may expect this one. Removed when dropped.
    let control = options.control.as_deref().map(Bound::at).transpose()?;
    let socket = Socket::bind(&options.socket)?;
    match options.sandbox {
        Switch::On => {
            let entered = sandbox::enter(&policy(options, machine)?)?;
            log::info!("sandboxed: {entered}");
        }
        Switch::Off => log::info!("not sandboxed: --sandbox is off"),
    }
    said::begin()?;
    let control = control.map(|bound| bound.serve(machine.clone())).transpose()?;
    Ok((device, control, socket))
}

/// What is opened, made and removed while the disk is served, and at the end.
fn policy(options: &Options, machine: &Machine) -> anyhow::Result<Policy> {
    let files = machine.files()?;
    let folders = files.folder.into_iter().chain(options.allow.iter().cloned()).collect();
    // Both sockets, and what is kept beside that of the disk.
    let sockets = options.control.iter().chain([&options.socket]);
    let unlink = sockets.map(|path| folder_of(path).to_owned()).collect();
    Ok(Policy { read: files.read, folders, unlink, rings: machine.has_rings() })
}

/// Readable when the program shall end.
fn signals() -> std::io::Result<UnixStream> {
    let (stop, write) = UnixStream::pair()?;
    let mut ending = vec![SIGTERM, SIGINT];
    // Comes when the terminal closes; whoever started this with `nohup` wants it to go on then.
    if !ignored(SIGHUP) {
        ending.push(SIGHUP);
    }
    for signal in ending {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    // A limit on the size of files (RLIMIT_FSIZE) shall be an error of one request, and not the end.
    signal_hook::flag::register(libc::SIGXFSZ, Arc::default())?;
    Ok(stop)
}

/// Was the program started with this signal ignored? See proc_pid_status(5).
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// What a guest that goes on with another device must find again.
fn shown(options: &Options) -> String {
    let whole = |path: &std::path::Path| {
        path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
    };
    let image = options.image.as_deref().map(whole);
    let recording = |what: &str, path: &std::path::Path| format!("{what} {}", whole(path));
    let parts = [
        image,
        options.recording.as_deref().map(|path| recording("recorded to", path)),
        options.states.as_deref().map(|path| recording("the states of", path)),
        options.read_only.then(|| "read-only".to_owned()),
        (options.front_end() == FrontEnd::Scsi).then(|| "as a SCSI disk".to_owned()),
        divided(options),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The logical units, where there are several.
fn divided(options: &Options) -> Option<String> {
    let luns = options.luns.iter().map(|Lun { name, bytes }| format!("{name} {}", Size(*bytes)));
    let luns: Vec<String> = luns.collect();
    (!luns.is_empty()).then(|| format!("divided into {}", luns.join(", ")))
}

/// What the guest is offered, in a line.
fn advertised(
    options: &Options,
    limits: &Limits,
    device: &dyn Device,
    machine: &Machine,
) -> String {
    let size = |bytes: u64| Size(bytes).to_string();
    let recording = options.recording.as_ref().filter(|_| options.record_payload);
    let store = match (recording, &options.states) {
        (Some(file), _) => format!("recorded to {}", file.display()),
        (None, Some(file)) => format!("the states of {}", file.display()),
        (None, None) => format!(
            "raw, by {}{}{}",
            match (machine.has_rings(), options.direct) {
                (false, _) => "preadv and pwritev",
                (true, true) => "io_uring",
                (true, false) => "io_uring, and pwritev into the page cache",
            },
            if options.direct { ", direct" } else { "" },
            match &options.recording {
                Some(file) => format!(", recorded without data to {}", file.display()),
                None => String::new(),
            }
        ),
    };
    let atomic = if limits.profile.unit_max == 0 {
        "nothing atomic above the logical block".to_owned()
    } else {
        let boundary = match limits.profile.boundary {
            0 => String::new(),
            boundary => format!(", boundary {}", size(boundary)),
        };
        let recording = recording.or(options.states.as_ref());
        let caution = match (limits.atomic(), recording) {
            (false, _) => "; no virtio-blk write is eligible",
            (true, None) => "; on a raw image only as good as the host's own disk",
            (true, Some(_)) => "",
        };
        format!(
            "atomic writes {} to {}, requests to {}{boundary} ({}){caution}",
            size(limits.profile.unit_min),
            size(limits.profile.unit_max),
            size(limits.profile.max_bytes),
            mode_name(limits.profile.mode),
        )
    };
    format!(
        "{}: {}{} from {}{}{}, {store}; blocks {} logical, {} physical; {} queues of {}; {atomic}; \
         torn at {}; waiting at {}",
        options.serial,
        if limits.front_end == FrontEnd::Scsi { "SCSI, " } else { "" },
        size(device.store().disk().capacity),
        options.image.as_deref().map_or("its base image".into(), |i| i.display().to_string()),
        if options.read_only { ", read-only" } else { "" },
        divided(options).map_or(String::new(), |units| format!(", {units}")),
        size(limits.logical_block_size.into()),
        size(limits.physical_block_size.into()),
        device.queues(),
        device.queue_size(),
        size(limits.tear_unit()),
        options.socket.display(),
    )
}
