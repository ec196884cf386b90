//! The byte stream to the host.
//!
//! In the guest it is a virtio-serial port. Its host end comes and goes (it is closed while a
//! saved state waits to be restored): reads then give end-of-file, writes wait. The port never
//! ends: it is read again until somebody is there, and opened again where it was unplugged.
//! In tests it is a socket, whose end is the end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::log::log;

/// How long to wait before a closed host end, or a missing port, is tried again.
const AGAIN: Duration = Duration::from_millis(10);

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Bytes(usize),
    /// The host end closed; a line that had begun will not be finished.
    Gone,
    /// There will be nothing more.
    End,
}

/// Bytes to and from the host; one thread reads, one writes.
pub trait Link: Send + Sync {
    /// Waits for bytes.
    fn receive(&self, buffer: &mut [u8]) -> Received;

    /// Writes all of a line. `false`: nobody will ever read it.
    fn send(&self, line: &[u8]) -> bool;

    /// Ends what can be ended, so that [`Link::receive`] returns.
    fn shut(&self);
}

/// A stream that ends when its peer is gone.
#[derive(Debug)]
pub struct Stream(File);

impl Stream {
    pub fn new(fd: OwnedFd) -> Stream {
        Stream(File::from(fd))
    }
}

impl Link for Stream {
    fn receive(&self, buffer: &mut [u8]) -> Received {
        loop {
            match (&self.0).read(buffer) {
                Ok(0) => return Received::End,
                Ok(n) => return Received::Bytes(n),
                Err(e) if is_transient(&e) => pause(&e),
                Err(_) => return Received::End,
            }
        }
    }

    fn send(&self, line: &[u8]) -> bool {
        send_all(&self.0, line).is_ok()
    }

    fn shut(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// The virtio-serial port of this name.
#[derive(Debug)]
pub struct Port {
    place: Place,
    open: Mutex<Arc<File>>,
}

/// Where to look for a port.
#[derive(Debug)]
struct Place {
    name: String,
    class: PathBuf,
    dev: PathBuf,
}

impl Port {
    /// Waits until the port is there.
    pub fn open(name: &str) -> Port {
        Port::open_in(Place {
            name: name.to_owned(),
            class: "/sys/class/virtio-ports".into(),
            dev: "/dev".into(),
        })
    }

    fn open_in(place: Place) -> Port {
        Port { open: Mutex::new(Arc::new(place.open())), place }
    }

    fn current(&self) -> Arc<File> {
        Arc::clone(&self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens the port again unless the other thread did so since `broken` was taken. The kernel
    /// lets a port be opened once only, but one that was unplugged is gone from sysfs.
    fn reopen(&self, broken: Arc<File>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&open, &broken) {
            std::thread::sleep(AGAIN);
            *open = Arc::new(self.place.open());
        }
    }
}

impl Link for Port {
    fn receive(&self, buffer: &mut [u8]) -> Received {
        let port = self.current();
        loop {
            match (&*port).read(buffer) {
                Ok(0) => {
                    std::thread::sleep(AGAIN);
                    return Received::Gone;
                }
                Ok(n) => return Received::Bytes(n),
                Err(e) if is_transient(&e) => pause(&e),
                Err(e) => {
                    log(format_args!("reading port {}: {e}; opening it again", self.place.name));
                    self.reopen(port);
                    return Received::Gone;
                }
            }
        }
    }

    fn send(&self, line: &[u8]) -> bool {
        loop {
            let port = self.current();
            let Err(e) = send_all(&port, line) else { return true };
            log(format_args!("writing port {}: {e}; opening it again", self.place.name));
            self.reopen(port);
            // What was cut off there must not be read as the beginning of this line.
            let _ = send_all(&self.current(), b"\n");
        }
    }

    /// It has no end.
    fn shut(&self) {}
}

fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn pause(e: &io::Error) {
    if e.kind() == io::ErrorKind::WouldBlock {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The port takes at most 32 KiB a write, and a socket what it has room for.
fn send_all(mut file: &File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match file.write(line) {
            Ok(0) => std::thread::sleep(AGAIN),
            Ok(n) => line = &line[n..],
            Err(e) if is_transient(&e) => pause(&e),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Place {
    /// Waits until the port is there and can be opened.
    fn open(&self) -> File {
        let mut said = false;
        loop {
            let found = self.find();
            let opened =
                found.as_ref().map(|path| OpenOptions::new().read(true).write(true).open(path));
            if let Some(Ok(file)) = opened {
                return file;
            }
            if !std::mem::replace(&mut said, true) {
                match opened {
                    Some(Err(e)) => log(format_args!("waiting for port {}: {e}", self.name)),
                    _ => log(format_args!("waiting for a virtio-serial port named {}", self.name)),
                }
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// `/dev/virtio-ports/NAME` where udev made it, else what sysfs calls so.
    fn find(&self) -> Option<PathBuf> {
        let link = self.dev.join("virtio-ports").join(&self.name);
        if link.exists() {
            return Some(link);
        }
        std::fs::read_dir(&self.class).ok()?.flatten().find_map(|entry| {
            let text = std::fs::read_to_string(entry.path().join("name")).ok()?;
            (text.trim_end() == self.name).then(|| self.dev.join(entry.file_name()))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;
    use crate::channel::PORT;

    /// A sysfs and a /dev with these ports.
    fn place(dir: &Path, name: &str) -> Place {
        let (class, dev) = (dir.join("class"), dir.join("dev"));
        std::fs::create_dir_all(&dev).unwrap();
        for (port, name) in [("vport0p1", "other\n"), ("vport0p2", "tornblk.agent\n")] {
            std::fs::create_dir_all(class.join(port)).unwrap();
            std::fs::write(class.join(port).join("name"), name).unwrap();
        }
        Place { name: name.into(), class, dev }
    }

    #[test]
    fn a_port_is_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path().join("dev");
        assert_eq!(place(dir.path(), PORT).find(), Some(dev.join("vport0p2")));
        let third = place(dir.path(), "third");
        assert_eq!(third.find(), None);
        std::fs::create_dir_all(dev.join("virtio-ports")).unwrap();
        std::fs::write(dev.join("virtio-ports/third"), "").unwrap();
        assert_eq!(third.find(), Some(dev.join("virtio-ports/third")));
    }

    #[test]
    fn a_port_whose_host_end_is_closed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), PORT);
        let node = place.dev.join("vport0p2");
        std::fs::write(&node, "").unwrap();
        // A file at its end reads like a port with nobody at the host end.
        let port = Port::open_in(place);
        let mut buffer = [0; 16];
        assert_eq!(port.receive(&mut buffer), Received::Gone);
        assert_eq!(port.receive(&mut buffer), Received::Gone);
        std::fs::write(&node, "hello").unwrap();
        assert_eq!(port.receive(&mut buffer), Received::Bytes(5));
        assert_eq!(&buffer[..5], b"hello");
    }

    #[test]
    fn a_port_that_comes_late_or_was_replaced_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let late = place(dir.path(), PORT);
        let node = late.dev.join("vport0p2");
        let opener = std::thread::spawn(move || Port::open_in(late));
        std::fs::write(&node, "first").unwrap();
        let port = opener.join().unwrap();
        let broken = port.current();
        std::fs::remove_file(&node).unwrap();
        std::fs::write(&node, "second").unwrap();
        port.reopen(Arc::clone(&broken));
        // The other thread finds the same breakage, and that it is repaired.
        let repaired = port.current();
        port.reopen(broken);
        assert!(Arc::ptr_eq(&repaired, &port.current()));
        let mut buffer = [0; 16];
        assert_eq!(port.receive(&mut buffer), Received::Bytes(6));
    }

    #[test]
    fn a_line_longer_than_the_socket_takes_goes_through() {
        let (a, mut b) = UnixStream::pair().unwrap();
        // Non-blocking: partial writes and EAGAIN.
        a.set_nonblocking(true).unwrap();
        let line: Vec<u8> = (0..5_000_000u32).map(|i| i as u8).collect();
        let expected = line.clone();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            b.read_to_end(&mut all).unwrap();
            all
        });
        let stream = Stream::new(OwnedFd::from(a));
        assert!(stream.send(&line));
        drop(stream);
        assert!(reader.join().unwrap() == expected);
    }
}
