//! Where something was tried, as kernels and tools say it of themselves.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use tornblk_agent::channel::AtomicLimits;

/// Of sysfs' `queue/`, what decides how writes reach the disk.
const QUEUE: [&str; 14] = [
    "atomic_write_unit_min_bytes",
    "atomic_write_unit_max_bytes",
    "atomic_write_max_bytes",
    "atomic_write_boundary_bytes",
    "scheduler",
    "nomerges",
    "write_cache",
    "fua",
    "logical_block_size",
    "physical_block_size",
    "max_sectors_kb",
    "max_segments",
    "nr_requests",
    "discard_max_bytes",
];

/// What was not asked is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Release of the kernel that this program runs on.
    #[serde(default)]
    pub host_kernel: String,
    /// What runs the guests' instructions.
    #[serde(default)]
    pub accelerator: String,
    #[serde(default)]
    pub qemu: String,
    /// Release of the guest's kernel.
    #[serde(default)]
    pub kernel: String,
    /// The command that made the file system, with `{device}` for the disk.
    #[serde(default)]
    pub mkfs: String,
    /// Of sysfs' `queue/`, as the guest's kernel shows it when the writes begin.
    #[serde(default)]
    pub queue: BTreeMap<String, String>,
    /// Of the disk, or of a file on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statx: Option<AtomicLimits>,
}

impl Environment {
    pub fn host_kernel() -> String {
        // Not there on other systems, on which no guest is started either.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        release.unwrap_or_default().trim().to_owned()
    }

    /// Takes over what the guest says of the disk: its answer to `WaitDisk`.
    pub fn shown(&mut self, disk: &Value) {
        for name in QUEUE {
            match &disk["queue"][name] {
                Value::Null => continue,
                Value::String(text) => self.queue.insert(name.to_owned(), text.clone()),
                other => self.queue.insert(name.to_owned(), other.to_string()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_kernel_shows_is_kept_and_the_rest_is_not() {
        let mut environment = Environment::default();
        environment.shown(
            &json!({ "queue": { "scheduler": "[none] mq-deadline", "nomerges": 2, "odd": 1 } }),
        );
        let queue: Vec<_> =
            environment.queue.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(queue, [("nomerges", "2"), ("scheduler", "[none] mq-deadline")]);
        environment.shown(&json!({}));
        assert_eq!(environment.queue.len(), 2);
    }
}
