//! The duties of PID 1: the file systems that everybody expects, the modules, and never to end.

use std::path::Path;

use super::log::{self, log};
use super::port::Port;
use super::serve::serve;
use super::{disk, fs};
use crate::channel::PORT;

/// Modules to load: one absolute path a line, in the order of their dependencies.
pub const MODULES: &str = "/etc/tornblk/modules";

const MOUNTS: [(&str, &str, &str); 5] = [
    ("devtmpfs", "/dev", ""),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
];

/// What is wrong shall be seen and collected, not end the guest. (Whether an oops does is for the
/// kernel's command line to say.)
const SYSCTLS: [(&str, &str); 2] =
    [("/proc/sys/kernel/panic_on_warn", "0"), ("/proc/sys/kernel/hung_task_timeout_secs", "30")];

/// Everything that PID 1 does.
pub fn init() -> ! {
    let failed: Vec<String> = MOUNTS
        .iter()
        .filter_map(|(fstype, target, options)| {
            fs::mount(fstype, target, fstype, options).err().map(|e| e.to_string())
        })
        .collect();
    log::use_kernel_log();
    failed.iter().for_each(log);
    std::panic::set_hook(Box::new(|info| log(format_args!("{info}"))));
    for (path, value) in SYSCTLS {
        // Not every kernel has every one.
        if Path::new(path).exists()
            && let Err(e) = disk::tune(&[(path.to_owned(), value.to_owned())])
        {
            log(e);
        }
    }
    load_modules();
    let port = Port::open(PORT);
    log("ready");
    loop {
        serve(&port, true);
        log("the channel ended; serving it again");
    }
}

fn load_modules() {
    let list = match std::fs::read_to_string(MODULES) {
        Ok(list) => list,
        // A kernel with everything built in needs none.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => return log(format_args!("cannot read {MODULES}: {e}")),
    };
    for line in module_lines(&list) {
        let (path, params) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if let Err(e) = fs::load_module(path, params.trim()) {
            log(e);
        }
    }
}

/// The lines that are neither empty nor comments.
fn module_lines(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_modules_may_have_comments() {
        let list = "# first\n/lib/a.ko\n\n  /lib/b.ko x=1 \n";
        assert_eq!(module_lines(list).collect::<Vec<_>>(), ["/lib/a.ko", "/lib/b.ko x=1"]);
    }
}
