//! Between the front-end and the daemon: passes messages on, and does what the daemon cannot.
//!
//! - VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD: a [`Region`] for what is in flight.
//! - VHOST_USER_PROTOCOL_F_BACKEND_REQ: a socket of the front-end's, on which it is told that the
//!   configuration changed (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG): the disk has grown.
//! - A second front-end is turned away, one that sends half a message, too much or nothing that it is
//!   answered is let go, and one that cuts its guest's memory short.
//!
//! It has a thread of its own, and never waits longer than [`PATIENCE`] for anybody.

use super::backend::Backend;
use super::in_flight::Region;
use super::socket::Socket;
use super::wire::{Message, NEED_REPLY, PATIENCE, Reader, WireError};
use crate::descriptors::{Spare, ran_out};
use crate::device::RING_SIZE_MAX;
use crate::peer::{Peer, told};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight, VhostUserProtocolFeatures};
use vm_memory::ByteValued;

/// How long a second front-end waits before it is turned away: the first may just be going, and
/// its place is then free.
const SECOND: Duration = Duration::from_millis(200);
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;
/// Bytes of [`VhostUserInflight`] without the padding of the C structure.
const INFLIGHT_FIELDS: usize = 20;

/// What the daemon does not know of.
fn ours() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::INFLIGHT_SHMFD | VhostUserProtocolFeatures::BACKEND_REQ
}

/// What is watched besides the two streams.
pub(super) struct Watched<'a> {
    pub(super) socket: &'a Socket,
    /// The program ends.
    pub(super) stop: BorrowedFd<'a>,
    /// To refuse with.
    pub(super) spare: &'a mut Spare,
}

pub(super) struct Relay<'a> {
    backend: &'a Backend,
    front: UnixStream,
    daemon: UnixStream,
    who: &'a str,
    watched: Watched<'a>,
    /// Of what is ours.
    agreed: VhostUserProtocolFeatures,
    /// Where the front-end listens.
    channel: Option<UnixStream>,
    /// One that is ours, and waits until the daemon has done all that was said before it.
    waiting: Option<Message>,
    /// Of GET_FEATURES, by anybody: asked of the daemon, and not answered yet.
    features_asked: usize,
}

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Ended {
    /// The front-end went.
    Gone,
    /// The daemon did not want it any more, and says why.
    ByDaemon,
    /// The program ends.
    Stopped,
    /// The front-end is let go.
    Refused(String),
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        backend: &'a Backend,
        front: UnixStream,
        daemon: UnixStream,
        who: &'a str,
        watched: Watched<'a>,
    ) -> io::Result<Relay<'a>> {
        front.set_write_timeout(Some(PATIENCE))?;
        daemon.set_write_timeout(Some(PATIENCE))?;
        let agreed = VhostUserProtocolFeatures::empty();
        Ok(Relay {
            backend,
            front,
            daemon,
            who,
            watched,
            agreed,
            channel: None,
            waiting: None,
            features_asked: 0,
        })
    }

    /// Until the connection ends; both streams are then closed.
    pub(super) fn run(mut self) -> Ended {
        let ended = self.pass_on();
        let _ = self.front.shutdown(Shutdown::Both);
        let _ = self.daemon.shutdown(Shutdown::Both);
        ended
    }

    fn pass_on(&mut self) -> Ended {
        let (mut asked, mut answered) = (Reader::default(), Reader::default());
        let mut second: Option<Instant> = None;
        let device = self.backend.device().clone();
        loop {
            let due = [asked.until(), second.map(|came| came + SECOND)].into_iter().flatten().min();
            let front = match self.waiting {
                None => self.front.as_fd(),
                Some(_) => self.daemon.as_fd(),
            };
            let fds = [
                self.watched.stop,
                self.daemon.as_fd(),
                front,
                self.backend.troubled(),
                device.store().resized().unwrap_or(self.watched.stop),
                self.watched.socket.as_fd(),
            ];
            // One that waits is looked at when its time has come.
            let watched = if second.is_some() { &fds[..5] } else { &fds[..] };
            let [stop, daemon, front, trouble, resized, another] = match ready(watched, due) {
                Ok(ready) => ready,
                Err(error) => return Ended::Refused(format!("it cannot be watched: {error}")),
            };
            if stop {
                return Ended::Stopped;
            }
            if daemon {
                match answered.next(&self.daemon) {
                    Ok(None) => {}
                    Ok(Some(answer)) => {
                        if let Err(ended) = self.answer(answer) {
                            return ended;
                        }
                    }
                    // It has a word of its own about why.
                    Err(_) => return Ended::ByDaemon,
                }
            }
            if trouble {
                return Ended::Refused("it cut the guest's memory short".to_owned());
            }
            if self.waiting.is_some() {
                // What the front-end says next is about what comes of it.
            } else if front || asked.until().is_some_and(|until| until <= Instant::now()) {
                match asked.next(&self.front) {
                    Ok(None) => {}
                    Ok(Some(message)) => {
                        if let Err(ended) = self.handle(message) {
                            return ended;
                        }
                    }
                    // A front-end that is killed leaves what it was about to say.
                    Err(None | Some(WireError::Cut)) => return Ended::Gone,
                    Err(Some(WireError::Io(error)))
                        if error.kind() == io::ErrorKind::ConnectionReset =>
                    {
                        return Ended::Gone;
                    }
                    Err(Some(error)) => return Ended::Refused(error.to_string()),
                }
            }
            if resized {
                self.tell_of_resize(device.store().resized());
            }
            if another && second.is_none() {
                second = Some(Instant::now());
            }
            if second.is_some_and(|came| came.elapsed() >= SECOND) {
                second = None;
                self.turn_away();
            }
        }
    }

    /// A message of the front-end's.
    fn handle(&mut self, mut message: Message) -> Result<(), Ended> {
        let is = |request: FrontendReq| message.id() == u32::from(request);
        let region = is(FrontendReq::GET_INFLIGHT_FD) || is(FrontendReq::SET_INFLIGHT_FD);
        let ours = (region && self.agreed.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD))
            || (is(FrontendReq::SET_BACKEND_REQ_FD)
                && self.agreed.contains(VhostUserProtocolFeatures::BACKEND_REQ));
        if ours {
            // The daemon answers in order: when it has answered this, it has done all before it, and
            // nothing of ours overtakes an answer of its own.
            self.waiting = Some(message);
            return self.ask(&Message::request(FrontendReq::GET_FEATURES.into()));
        }
        if is(FrontendReq::SET_PROTOCOL_FEATURES)
            && let Some(all) = message.number()
        {
            self.agreed = VhostUserProtocolFeatures::from_bits_truncate(all);
            message.set_number(all & !self::ours().bits());
        }
        self.ask(&message)
    }

    fn ask(&mut self, message: &Message) -> Result<(), Ended> {
        if message.id() == u32::from(FrontendReq::GET_FEATURES) {
            self.features_asked += 1;
        }
        // It is gone, and has a word of its own about why.
        message.send(&self.daemon).map_err(|_| Ended::ByDaemon)
    }

    /// An answer of the daemon's.
    fn answer(&mut self, mut answer: Message) -> Result<(), Ended> {
        if answer.id() == u32::from(FrontendReq::GET_FEATURES) {
            self.features_asked = self.features_asked.saturating_sub(1);
            if self.features_asked == 0
                && let Some(message) = self.waiting.take()
            {
                return self.handle_ours(&message);
            }
        }
        if answer.id() == u32::from(FrontendReq::GET_PROTOCOL_FEATURES)
            && let Some(known) = answer.number()
        {
            answer.set_number(known | ours().bits());
        }
        self.tell(&answer)
    }

    /// To the front-end.
    fn tell(&self, message: &Message) -> Result<(), Ended> {
        message.send(&self.front).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ended::Gone,
            _ => Ended::Refused(error.to_string()),
        })
    }

    fn handle_ours(&mut self, message: &Message) -> Result<(), Ended> {
        let is = |request: FrontendReq| message.id() == u32::from(request);
        if is(FrontendReq::GET_INFLIGHT_FD) {
            let reply = make_region(message).map_err(Ended::Refused)?;
            return self.tell(&reply);
        }
        let done = if is(FrontendReq::SET_INFLIGHT_FD) {
            self.take_region(message)
        } else {
            self.take_channel(message)
        };
        if let Err(problem) = &done {
            log::warn!("{}: {problem}", self.who);
        }
        if message.flags() & NEED_REPLY != 0
            && self.agreed.contains(VhostUserProtocolFeatures::REPLY_ACK)
        {
            let status = u64::from(done.is_err());
            return self.tell(&Message::reply(message.id(), &status.to_ne_bytes()));
        }
        // Nobody would notice.
        done.map_err(Ended::Refused)
    }

    fn take_region(&mut self, message: &Message) -> Result<(), String> {
        let given = Inflight::read(message.payload())?;
        let [file] = &message.files[..] else {
            return Err(format!(
                "SET_INFLIGHT_FD brings {} files instead of the region's one",
                message.files.len()
            ));
        };
        let needed = Region::bytes(given.queues, given.size);
        if given.mapped < needed {
            return Err(format!(
                "the region of what is in flight has {} bytes, and {} queues of {} need {needed}",
                given.mapped, given.queues, given.size
            ));
        }
        let file = file.try_clone().map(File::from);
        let region = file.and_then(|f| Region::map(&f, given.offset, given.queues, given.size));
        let region = region.map_err(|e| format!("no region of what is in flight: {e}"))?;
        self.backend.remember_in(region);
        Ok(())
    }

    fn take_channel(&mut self, message: &Message) -> Result<(), String> {
        let [file] = &message.files[..] else {
            return Err(format!(
                "SET_BACKEND_REQ_FD brings {} files instead of the one socket",
                message.files.len()
            ));
        };
        let stream = file.try_clone().map(UnixStream::from);
        let stream = stream.and_then(|stream| {
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        self.channel = Some(stream.map_err(|e| format!("its socket cannot be used: {e}"))?);
        Ok(())
    }

    fn tell_of_resize(&mut self, bell: Option<BorrowedFd<'_>>) {
        if let Some(bell) = bell {
            let _ = rustix::io::read(bell, &mut [0u8; 8]);
        }
        self.backend.device().resized();
        if !self.backend.device().shows_config() {
            // The driver hears of it with its next command, or looks for itself.
            return;
        }
        let Some(channel) = &self.channel else {
            log::warn!(
                "{} cannot be told that the disk has another size: its guest sees that when it \
                 connects again",
                self.who
            );
            return;
        };
        if let Err(error) = Message::request(CONFIG_CHANGE).send(channel) {
            log::warn!("{} was not told that the disk has another size: {error}", self.who);
        }
    }

    fn turn_away(&mut self) {
        let (socket, who) = (self.watched.socket, self.who);
        let turned_away = |stream: UnixStream| {
            log::warn!(
                "{} wants to connect to {}, where {who} is connected: turned away",
                told(Peer::of(&stream).as_ref()),
                socket.path().display()
            );
        };
        match socket.listener().accept() {
            Ok((stream, _)) => turned_away(stream),
            Err(error) if ran_out(&error) => {
                self.watched.spare.turn_away(socket.listener(), turned_away);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("a second front-end could not be accepted: {error}"),
        }
    }
}

/// The answer to GET_INFLIGHT_FD.
fn make_region(message: &Message) -> Result<Message, String> {
    let wanted = Inflight::read(message.payload())?;
    let file = Region::memory(wanted.queues, wanted.size)
        .map_err(|e| format!("no memory for what is in flight: {e}"))?;
    let mapped = Region::bytes(wanted.queues, wanted.size);
    let mut reply = Message::reply(message.id(), &Inflight { mapped, ..wanted }.bytes());
    reply.files.push(OwnedFd::from(file));
    Ok(reply)
}

/// The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Clone, Copy, Debug)]
struct Inflight {
    mapped: u64,
    offset: u64,
    queues: u16,
    size: u16,
}

impl Inflight {
    fn read(payload: &[u8]) -> Result<Inflight, String> {
        let mut all = VhostUserInflight::default();
        let (to, fields) = (all.as_mut_slice(), INFLIGHT_FIELDS);
        let Some(given) = payload.get(..fields) else {
            let has = payload.len();
            return Err(format!("{has} bytes say what is in flight where, and must be {fields}"));
        };
        to[..fields].copy_from_slice(given);
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = all;
        // As many as any device here may have.
        if !(1..=64).contains(&num_queues) || !(1..=RING_SIZE_MAX).contains(&queue_size) {
            return Err(format!(
                "it asks to remember what is in flight on {num_queues} queues of {queue_size}: not \
                 1 to 64 of 1 to {RING_SIZE_MAX}"
            ));
        }
        Ok(Inflight {
            mapped: mmap_size,
            offset: mmap_offset,
            queues: num_queues,
            size: queue_size,
        })
    }

    /// As the C structure has it, with four bytes behind the fields.
    fn bytes(self) -> [u8; INFLIGHT_FIELDS + 4] {
        let mut bytes = [0; INFLIGHT_FIELDS + 4];
        bytes[0..8].copy_from_slice(&self.mapped.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[18..20].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// Which of `fds` are readable, or broken; none after `due`, or after a signal.
pub(super) fn ready<const N: usize>(
    fds: &[BorrowedFd<'_>],
    due: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
    let timeout = timeout.map(|wait| Timespec {
        tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    });
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = [false; N];
    for (ready, polled) in ready.iter_mut().zip(&polled) {
        *ready = !polled.revents().is_empty();
    }
    Ok(ready)
}
