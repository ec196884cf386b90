//! One write after the other, by pwritev2(2); and what all writers have in common.

use std::io::IoSlice;

use rustix::io::{ReadWriteFlags, pwritev2};

use super::buffer::Buffer;
use super::plan::{Plan, Step};
use super::prepare::stamp;
use super::{Opened, Shared, describe, rwf};
use crate::channel::{MarkText, Target};
use crate::guest::{Error, Result, explain, sys};
use crate::payload::fill;

/// So many failed writes in a row, and the disk is taken for gone.
const GIVE_UP: u32 = 8;

/// Writes a thread's plan.
pub fn run(shared: &Shared<'_>, target: &Target, opened: &Opened, plan: Plan) -> Result<()> {
    let mut buffer = Buffer::behind_a_page(target.unit as usize, target.buffer_offset as usize);
    let mut tally = Tally::new(shared, target, opened);
    for step in plan {
        if shared.is_over() {
            break;
        }
        let file = opened.file(step.flags)?;
        let batch = tally.mark(vec![intent(target, opened, &step)]);
        // Meanwhile.
        fill(buffer.bytes_mut(), stamp(target, shared.workload, step.unit, step.generation));
        shared.outbox.wait(batch)?;
        let how = rwf(step.flags, shared.workload.skip_sync);
        let offset = target.offset_of(step.unit);
        let result = loop {
            let buffers = [IoSlice::new(buffer.bytes())];
            match pwritev2(file, &buffers, offset, ReadWriteFlags::from_bits_retain(how)) {
                Ok(n) => break n as i64,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => break -i64::from(e.raw_os_error()),
            }
        };
        tally.done(&step, result)?;
        if step.sync {
            tally.sync()?;
        }
    }
    tally.flush();
    Ok(())
}

pub fn intent(target: &Target, opened: &Opened, step: &Step) -> MarkText {
    let offset = target.offset_of(step.unit);
    let file = opened.file(step.flags).ok().filter(|_| target.named);
    MarkText::Intent {
        at: file.and_then(|file| sys::place_of(file, offset, target.unit.into())),
        file: target.file,
        unit: step.unit,
        r#gen: step.generation,
        offset,
        len: target.unit,
        flags: step.flags,
    }
}

/// Results of one thread: counted, and on their way to the host with its next marks.
#[derive(Debug)]
pub struct Tally<'a> {
    shared: &'a Shared<'a>,
    target: &'a Target,
    opened: &'a Opened,
    pending: Vec<MarkText>,
    failed_in_a_row: u32,
}

impl<'a> Tally<'a> {
    pub fn new(shared: &'a Shared<'a>, target: &'a Target, opened: &'a Opened) -> Tally<'a> {
        Tally { shared, target, opened, pending: Vec::new(), failed_in_a_row: 0 }
    }

    /// Sends what is pending, then `marks`.
    pub fn mark(&mut self, marks: Vec<MarkText>) -> u64 {
        let mut all = std::mem::take(&mut self.pending);
        all.extend(marks);
        self.shared.outbox.mark(all)
    }

    /// Sends what is pending.
    pub fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.mark(Vec::new());
        }
    }

    /// A write returned. An error where the disk seems to be gone.
    pub fn done(&mut self, step: &Step, result: i64) -> Result<()> {
        let (file, unit, r#gen) = (self.target.file, step.unit, step.generation);
        self.pending.push(MarkText::Done { file, unit, r#gen, result });
        let whole = i64::from(self.target.unit);
        if result >= 0 {
            self.failed_in_a_row = 0;
            self.shared.count(|w| if result == whole { w.whole += 1 } else { w.short += 1 });
            return Ok(());
        }
        let Target { path, unit: len, .. } = self.target;
        let errno = -result as i32;
        let what = format!(
            "a write of {len} bytes at {} of {path} ({})",
            self.target.offset_of(unit),
            describe(step.flags)
        );
        self.shared.count(|w| {
            w.failed += 1;
            w.first_error.get_or_insert_with(|| format!("{what}: {}", explain(errno)));
        });
        self.failed_in_a_row += 1;
        if self.failed_in_a_row < GIVE_UP {
            return Ok(());
        }
        self.flush();
        Err(Error::System {
            what: format!("{GIVE_UP} writes in a row failed, the last {what}"),
            errno,
        })
    }

    /// fdatasync. What is pending is recorded before it begins, so that it covers that too.
    pub fn sync(&mut self) -> Result<()> {
        let batch = self.mark(Vec::new());
        self.shared.outbox.wait(batch)?;
        let since = self.shared.outbox.last_acked();
        let file = self.opened.direct.as_ref().or(self.opened.buffered.as_ref());
        let result = match file {
            Some(file) if !self.shared.workload.skip_sync => match rustix::fs::fdatasync(file) {
                Ok(()) => 0,
                Err(e) => -i64::from(e.raw_os_error()),
            },
            _ => 0,
        };
        self.pending.push(MarkText::Synced { file: self.target.file, since, result });
        self.shared.count(|w| {
            if result == 0 {
                w.synced += 1;
                return;
            }
            w.sync_failed += 1;
            w.first_error.get_or_insert_with(|| {
                format!("fdatasync of {}: {}", self.target.path, explain(-result as i32))
            });
        });
        // At once: what it promises should be on record as early as it can.
        self.flush();
        Ok(())
    }
}
