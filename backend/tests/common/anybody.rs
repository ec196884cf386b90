//! Where another user can come.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// A folder that every user reaches: that for temporary files need not be one.
pub(crate) fn folder() -> TempDir {
    let open = |on: &Path| {
        std::fs::metadata(on).is_ok_and(|folder| folder.permissions().mode() & 0o001 != 0)
    };
    let way = |folder: &Path| folder.ancestors().all(open);
    let folders = [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()];
    let found = folders.iter().find(|folder| way(folder)).expect("a folder for temporary files");
    let folder = tempfile::tempdir_in(found).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}
