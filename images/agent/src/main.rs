//! The guest's PID 1; called `tornblk-mark` the program that marks a recording; or with `--serve` the same without its duties, for tests on a host.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use tornblk_agent::guest::child;
use tornblk_agent::guest::init::init;
use tornblk_agent::guest::log::log;
use tornblk_agent::guest::port::Stream;
use tornblk_agent::guest::program;
use tornblk_agent::guest::serve::{End, serve};

const USAGE: &str = "usage: tornblk-agent --serve SOCKET (a path to listen on, or the number of \
                     an open descriptor); without arguments only as PID 1";

fn main() -> ExitCode {
    let mut args = std::env::args();
    let called = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    // PID 1 gets whatever of the kernel's command line the kernel does not know.
    if std::process::id() == 1 {
        init();
    }
    if called.rsplit('/').next() == Some(program::MARKER) {
        return program::mark_by_name(&args);
    }
    if let [child::CHILD, part, ..] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return child::run(part, &args[2..]);
    }
    let ["--serve", socket] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        log(USAGE);
        return ExitCode::from(2);
    };
    if let Ok(fd) = socket.parse() {
        // SAFETY: whoever passes a number gives the descriptor away.
        serve(&Stream::new(unsafe { OwnedFd::from_raw_fd(fd) }), false);
        return ExitCode::SUCCESS;
    }
    let listener = match UnixListener::bind(socket) {
        Ok(listener) => listener,
        Err(e) => {
            log(format_args!("cannot listen on {socket}: {e}"));
            return ExitCode::from(2);
        }
    };
    for peer in listener.incoming() {
        match peer {
            Ok(peer) => {
                if serve(&Stream::new(OwnedFd::from(peer)), false) == End::PowerOff {
                    break;
                }
            }
            Err(e) => log(format_args!("cannot accept on {socket}: {e}")),
        }
    }
    let _ = std::fs::remove_file(socket);
    ExitCode::SUCCESS
}
