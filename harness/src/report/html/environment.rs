//! Where it was tried: facts, each as somebody says it, and those that nobody was asked for.

use super::Fact;
use super::promise;
use crate::run::{Environment, Volume};

/// Of sysfs' `queue/`: what is always told, asked or not.
const ALWAYS: [&str; 5] = [
    "scheduler",
    "atomic_write_unit_min_bytes",
    "atomic_write_unit_max_bytes",
    "atomic_write_max_bytes",
    "atomic_write_boundary_bytes",
];

/// The machine and the guest.
pub(super) fn machine(environment: Option<&Environment>) -> Vec<Fact> {
    let none = Environment::default();
    let e = environment.unwrap_or(&none);
    vec![
        Fact::new("guest's kernel", e.kernel.as_str()),
        Fact::new("QEMU", e.qemu.as_str()),
        Fact::new("accelerator", e.accelerator.as_str()),
        Fact::new("host's kernel", e.host_kernel.as_str()),
    ]
}

/// The disk, and what is on it.
pub(super) fn disk(volume: Option<&Volume>, environment: Option<&Environment>) -> Vec<Fact> {
    let none = Environment::default();
    let e = environment.unwrap_or(&none);
    let mut facts = Vec::new();
    if let Some(v) = volume {
        let promises = promise::words(&v.profile);
        facts.push(Fact::new("recorded as", format!("{}: {promises}", v.profile)));
        facts.push(Fact::new("front end", v.front_end.to_string()));
        facts.push(Fact::new("logical block", format!("{} bytes", v.logical_block_size)));
        let fs = if v.is_raw() { "none: the raw disk" } else { v.fstype.as_str() };
        facts.push(Fact::new("file system", fs));
        if !v.is_raw() {
            facts.push(Fact::new("made by", e.mkfs.as_str()));
            let options =
                if v.mount_options.is_empty() { "the defaults" } else { &v.mount_options };
            facts.push(Fact::new("mount options", options));
        } else if !e.mkfs.is_empty() {
            facts.push(Fact::new("made by", e.mkfs.as_str()));
        }
    }
    for name in ALWAYS {
        let value = e.queue.get(name).cloned();
        facts.push(Fact { name: format!("queue/{name}"), value });
    }
    let others = e.queue.iter().filter(|(name, _)| !ALWAYS.contains(&name.as_str()));
    facts.extend(others.map(|(name, value)| Fact::new(&format!("queue/{name}"), value.as_str())));
    let statx = e.statx.as_ref().map(|s| {
        format!(
            "unit_min {}, unit_max {}, unit_max_opt {}, segments_max {}",
            s.unit_min, s.unit_max, s.unit_max_opt, s.segments_max
        )
    });
    facts.push(Fact { name: "statx, stx_atomic_write_".to_owned(), value: statx });
    facts
}
