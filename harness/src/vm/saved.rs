//! A booted guest kept in a file: restoring it takes a fraction of booting.
//!
//! It is saved with no disk attached (QEMU refuses to migrate a vhost-user device of this kind) and
//! with the modules loaded that a boot leaves out, which take longer than the boot. It lies in the image's
//! folder under a key of everything that it depends on, and goes with the image.
//!
//! What the kernel said on its console until then lies beside it, and is the beginning of the
//! console of every guest that is restored: a warning of its boot is a warning of that guest.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qapi::qmp::{self, MigrationCapability, MigrationCapabilityStatus, MigrationStatus};
use rustix::fs::{FlockOperation, flock};
use tornblk_agent::channel::{Command, Outcome};

use super::machine::Threads;
use super::{BOOT_TIMEOUT, CONSOLE, NoHost, QMP_TIMEOUT, Qemu, Vm, VmConfig, VmError, io, machine};

/// Counts up when the same text would give another state.
const FORMAT: u32 = 4;

/// Loaded before saving.
const MODULES: [&str; 4] = ["ext4", "xfs", "virtio_scsi", "sd_mod"];

/// Writing or reading the state: a few hundred megabytes.
const MOVE_TIMEOUT: Duration = Duration::from_secs(120);

/// A restored guest continues where it was: it answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes the saved state where there is none.
pub(super) fn ensure(config: &VmConfig<'_>, progress: &mut dyn FnMut(&str)) -> Result<(), VmError> {
    let state = path(config);
    if state.is_file() {
        return Ok(());
    }
    progress("booting a guest, once: its state is kept");
    make(config, &state)
}

/// Starts from the saved state; makes it first where there is none.
pub(super) fn start(config: &VmConfig<'_>) -> Result<Vm, VmError> {
    let state = path(config);
    if !state.is_file() {
        make(config, &state)?;
    }
    match restore(config, &state) {
        Ok(vm) => Ok(vm),
        Err(VmError::Stopped) => Err(VmError::Stopped),
        Err(e) => {
            // It would fail the next time, too.
            let _ = fs::remove_file(&state);
            Err(e)
        }
    }
}

fn path(config: &VmConfig<'_>) -> PathBuf {
    let qemu = config.qemu.path().to_string_lossy();
    let shape = machine::shape(config).join("\n");
    let parts = [&FORMAT.to_string(), &*qemu, config.qemu.text(), &shape, &MODULES.join(" ")];
    let key = tornblk_image::cache::key(&parts);
    config.image.dir.join("saved").join(format!("{key}.state"))
}

/// What the guest said until it was saved.
fn console_of(state: &Path) -> PathBuf {
    state.with_extension("console")
}

/// Boots a guest and saves it. One process does it, others wait and use its work.
fn make(config: &VmConfig<'_>, state: &Path) -> Result<(), VmError> {
    let dir = config.image.dir.join("saved");
    let cannot = || format!("cannot make the folder {}", dir.display());
    fs::create_dir_all(&dir).map_err(|e| io(cannot())(e))?;
    let lock_path = state.with_extension("lock");
    let cannot_lock = || format!("cannot lock {}", lock_path.display());
    let lock = File::create(&lock_path).map_err(|e| io(cannot_lock())(e))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| io(cannot_lock())(e.into()))?;
    if state.is_file() {
        return Ok(());
    }
    let work =
        tempfile::Builder::new().prefix(".tmp-").tempdir_in(&dir).map_err(|e| io(cannot())(e))?;
    // Its console is nobody's: it is shown only when it does not boot.
    let mut vm =
        Vm::launch(&VmConfig { dir: work.path(), ..config.clone() }, Threads::One, &[], &[])?;
    vm.greet(BOOT_TIMEOUT)?;
    load_modules(&mut vm, config)?;
    zero_free_memory(&mut vm)?;
    let written = work.path().join("state");
    save(&mut vm, &config.qemu, &written)?;
    // A program that QEMU writes to may not have written all.
    vm.quit();
    let said = console_of(state);
    fs::rename(work.path().join(CONSOLE), &said)
        .map_err(io(format!("cannot put in place {}", said.display())))?;
    let cannot_place = format!("cannot put in place {}", state.display());
    fs::rename(&written, state).map_err(io(cannot_place))
}

/// Saves a guest that may have been at work for long, and ends it.
pub(super) fn keep(mut vm: Vm, config: &VmConfig<'_>, path: &Path) -> Result<(), VmError> {
    save(&mut vm, &config.qemu, path)?;
    vm.quit();
    let said = console_of(path);
    fs::copy(config.dir.join(CONSOLE), &said)
        .map_err(io(format!("cannot write {}", said.display())))?;
    Ok(())
}

/// Stops the guest and writes it into a file.
fn save(vm: &mut Vm, qemu: &Qemu, path: &Path) -> Result<(), VmError> {
    vm.qmp.execute(&qmp::stop {}, QMP_TIMEOUT)?;
    prepare(vm, qemu)?;
    vm.qmp.execute(&unlimited()?, QMP_TIMEOUT)?;
    let uri = Some(uri(qemu, path, true));
    let migrate = qmp::migrate { channels: None, detach: None, resume: None, uri };
    vm.qmp.execute(&migrate, QMP_TIMEOUT)?;
    let start = Instant::now();
    loop {
        let info = vm.qmp.execute(&qmp::query_migrate {}, QMP_TIMEOUT)?;
        match info.status {
            Some(MigrationStatus::completed) => return Ok(()),
            Some(MigrationStatus::failed | MigrationStatus::cancelled) => {
                let why = info.error_desc.unwrap_or_else(|| "QEMU does not say why".into());
                return Err(VmError::Save(why));
            }
            _ if start.elapsed() > MOVE_TIMEOUT => {
                let seconds = MOVE_TIMEOUT.as_secs();
                return Err(VmError::Save(format!("it takes longer than {seconds} s")));
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn load_modules(vm: &mut Vm, config: &VmConfig<'_>) -> Result<(), VmError> {
    // What is built in is not there as a module.
    let modules = config.image.load_order(&MODULES);
    if modules.is_empty() {
        return Ok(());
    }
    let mut argv = vec!["/usr/sbin/modprobe".to_owned(), "-a".to_owned()];
    argv.extend(modules.iter().map(|m| m.name.clone()));
    let exec = Command::Exec { argv, timeout_ms: BOOT_TIMEOUT.as_millis() as u64 };
    match vm.call(exec, &mut NoHost, Instant::now() + BOOT_TIMEOUT)? {
        Outcome::Ok { value } if value.get("status").is_some_and(|s| s == 0) => Ok(()),
        other => Err(VmError::Save(format!("the modules cannot be loaded: {other:?}"))),
    }
}

/// What was freed, the initramfs above all, still has its content, and would be saved and read
/// back each time: a third of all. Zeroes are not saved. tmpfs takes half of the memory at most.
fn zero_free_memory(vm: &mut Vm) -> Result<(), VmError> {
    let script = "dd if=/dev/zero of=/tmp/zero bs=1M 2>/dev/null; rm /tmp/zero";
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let exec = Command::Exec { argv, timeout_ms: BOOT_TIMEOUT.as_millis() as u64 };
    // Without it the state is larger, and no worse.
    let outcome = vm.call(exec, &mut NoHost, Instant::now() + BOOT_TIMEOUT)?;
    log::debug!("free memory is zeroed: {outcome:?}");
    Ok(())
}

pub(super) fn restore(config: &VmConfig<'_>, state: &Path) -> Result<Vm, VmError> {
    let incoming = ["-incoming", "defer"].map(str::to_owned);
    let said =
        fs::read(console_of(state)).map_err(io("cannot read what the guest said at its boot"))?;
    let console = config.dir.join(CONSOLE);
    let cannot = || io(format!("cannot write the console's file {}", console.display()));
    let mut file = File::options().create(true).append(true).open(&console).map_err(cannot())?;
    file.write_all(&said).map_err(cannot())?;
    let mut vm = Vm::launch(config, Threads::Each, &incoming, &[])?;
    prepare(&mut vm, &config.qemu)?;
    let uri = Some(uri(&config.qemu, state, false));
    let incoming = qmp::migrate_incoming { channels: None, exit_on_error: None, uri };
    vm.qmp.execute(&incoming, QMP_TIMEOUT).map_err(|e| vm.what_really(e))?;
    let start = Instant::now();
    loop {
        let status = vm.qmp.execute(&qmp::query_status {}, QMP_TIMEOUT);
        let status = status.map_err(|e| vm.what_really(e))?.status;
        match status {
            qmp::RunState::inmigrate => {}
            // It was stopped when it was saved, and still is.
            _ => break,
        }
        if start.elapsed() > MOVE_TIMEOUT {
            let (command, seconds) = ("migrate-incoming", MOVE_TIMEOUT.as_secs());
            return Err(VmError::QmpTimeout { command, seconds });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    vm.qmp.execute(&qmp::cont {}, QMP_TIMEOUT).map_err(|e| vm.what_really(e))?;
    vm.ping(ANSWER_TIMEOUT)?;
    Ok(vm)
}

/// Both sides of a migration must agree on this.
fn prepare(vm: &mut Vm, qemu: &Qemu) -> Result<(), VmError> {
    if !qemu.has_mapped_ram() {
        return Ok(());
    }
    let capability = MigrationCapability::mapped_ram;
    let capabilities = vec![MigrationCapabilityStatus { capability, state: true }];
    let set = qmp::migrate_set_capabilities { capabilities };
    vm.qmp.execute(&set, QMP_TIMEOUT).map_err(|e| vm.what_really(e))?;
    Ok(())
}

/// QEMU is careful with a network that nobody uses here.
fn unlimited() -> Result<qmp::migrate_set_parameters, VmError> {
    super::qmp::from(serde_json::json!({ "max-bandwidth": 1_u64 << 40 }))
}

/// Where the state goes to, or comes from. Older QEMUs write to a program only.
fn uri(qemu: &Qemu, path: &Path, out: bool) -> String {
    let path = path.to_string_lossy();
    if qemu.has_file_migration() {
        return format!("file:{path}");
    }
    let quoted = path.replace('\'', r"'\''");
    let direction = if out { ">" } else { "<" };
    format!("exec:cat {direction} '{quoted}'")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn qemu(dir: &Path, version: &str) -> Qemu {
        let path = dir.join("qemu");
        fs::write(&path, format!("#!/bin/sh\necho QEMU emulator version {version}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Qemu::at(&path).unwrap()
    }

    #[test]
    fn a_path_is_no_part_of_a_shell_command() {
        let tmp = tempfile::tempdir().unwrap();
        let old = qemu(tmp.path(), "7.2.0");
        assert_eq!(uri(&old, Path::new("/a b/it's"), true), r"exec:cat > '/a b/it'\''s'");
        assert_eq!(uri(&old, Path::new("/a"), false), "exec:cat < '/a'");
        let new = qemu(tmp.path(), "10.0.2");
        assert_eq!(uri(&new, Path::new("/a b"), true), "file:/a b");
    }
}
