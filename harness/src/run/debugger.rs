//! A run beneath a debugger: which of its guests wait for one, and how it is attached.

use crate::out::note;
use crate::vm::Gdb;
use std::path::{Path, PathBuf};

/// The guests of a cut wait for gdb; the one that makes the file system does not.
#[derive(Clone, Debug)]
pub struct Debugger {
    pub gdb: Gdb,
    /// The kernel's vmlinux, where it is known.
    pub vmlinux: Option<PathBuf>,
}

impl Debugger {
    /// The command that attaches one.
    pub fn attach(&self) -> String {
        let vmlinux = self
            .vmlinux
            .as_ref()
            .map_or("VMLINUX".to_owned(), |path| super::word(&path.display().to_string()));
        format!("gdb {vmlinux} -ex 'target remote :{}'", self.gdb.port)
    }

    /// Does the guest whose console goes to this folder wait? The user is told so.
    pub(super) fn of(&self, dir: &Path) -> Option<Gdb> {
        let which = match dir.file_name()?.to_str()? {
            "mkfs" => return None,
            "before" => "the guest that writes until the cut",
            "after" => "the guest that reads what is left after the cut",
            _ => "the guest with the shell",
        };
        note!("{which} waits for a debugger; `continue` there lets it go on:\n  {}", self.attach());
        Some(self.gdb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_typed() {
        let mut debugger = Debugger { gdb: Gdb::default(), vmlinux: None };
        assert_eq!(debugger.attach(), "gdb VMLINUX -ex 'target remote :1234'");
        debugger.vmlinux = Some("/src/my linux/vmlinux".into());
        assert_eq!(debugger.attach(), "gdb '/src/my linux/vmlinux' -ex 'target remote :1234'");
    }

    #[test]
    fn both_guests_of_a_cut_wait() {
        let debugger = Debugger { gdb: Gdb { port: 1 }, vmlinux: None };
        assert!(debugger.of(Path::new("/run/raw/cut-001/before")).is_some());
        assert!(debugger.of(Path::new("/run/raw/cut-001/after")).is_some());
        assert!(debugger.of(Path::new("/run/raw/mkfs")).is_none());
    }
}
