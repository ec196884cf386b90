//! What is printed. Who reads it may have seen enough and gone: then the rest is dropped, and the
//! program does what it is for all the same.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;

/// The first thing that could not be printed.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// As `println!`, which panics where nobody reads.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::line(format_args!($($text)*)) };
}

/// As `eprintln!`, which panics where nobody reads.
macro_rules! note {
    ($($text:tt)*) => { $crate::out::aside(format_args!($($text)*)) };
}

pub(crate) use {note, say};

pub(crate) fn line(text: fmt::Arguments<'_>) {
    // It never fails.
    let _ = writeln!(Stdout, "{text}");
}

pub(crate) fn aside(text: fmt::Arguments<'_>) {
    // There is nobody else to be told.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Why something could not be printed, other than that nobody wanted to read it.
pub(crate) fn failed() -> Option<&'static io::Error> {
    let _ = Stdout.flush();
    FAILED.get().filter(|e| e.kind() != io::ErrorKind::BrokenPipe)
}

/// The standard output. It takes everything: see [`failed`].
#[derive(Debug)]
pub(crate) struct Stdout;

impl Stdout {
    fn keep(result: io::Result<()>) {
        if let Err(error) = result {
            let _ = FAILED.set(error);
        }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if FAILED.get().is_none() {
            Stdout::keep(io::stdout().write_all(bytes));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if FAILED.get().is_none() {
            Stdout::keep(io::stdout().flush());
        }
        Ok(())
    }
}
