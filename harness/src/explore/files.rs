//! Whose blocks these are, where a program of the user's wrote files: as the file system said when the
//! program had ended, beside the recording. Earlier they may have been another file's.

use super::{Call, Explain, ExploreError};
use std::ops::Range;
use std::path::Path;
use tornblk_agent::channel::FileMap;
use tornblk_model::event::Seq;

/// In the recording's folder.
pub const FILES: &str = "files.json";

/// The files, by where they lie.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// (place on the disk, bytes, file, offset in it), rising.
    extents: Vec<(u64, u64, usize, u64)>,
    paths: Vec<String>,
    lb_size: u64,
}

impl Files {
    /// What lies beside the recording; nothing, where nothing does.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn beside(recording: &Path, lb_size: u32) -> Result<Files, ExploreError> {
        let path = recording.with_file_name(FILES);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Files::default()),
            Err(e) => return Err(super::session::io("read", &path)(e)),
        };
        let map = serde_json::from_slice(&bytes);
        let map: FileMap =
            map.map_err(|e| ExploreError::Bad(format!("{} is damaged: {e}", path.display())))?;
        Ok(Files::new(map, lb_size))
    }

    fn new(map: FileMap, lb_size: u32) -> Files {
        let mut files = Files { lb_size: u64::from(lb_size), ..Files::default() };
        for (path, extents) in map.files {
            let file = files.paths.len();
            files.paths.push(path);
            let places = extents.into_iter().map(|(offset, at, len)| (at, len, file, offset));
            files.extents.extend(places);
        }
        files.extents.sort_unstable();
        files
    }
}

impl Explain for Files {
    fn call(&self, _: Seq, blocks: &Range<u64>) -> Option<Call> {
        let (start, end) = (blocks.start * self.lb_size, blocks.end * self.lb_size);
        // The last one that begins before the end; of files that share it, one.
        let before = self.extents.partition_point(|(at, ..)| *at < end);
        let (at, len, file, offset) = *self.extents[..before].last()?;
        let (from, to) = (start.max(at), end.min(at + len));
        (from < to).then(|| Call {
            call: "a write into blocks that in the end are".to_owned(),
            path: self.paths[file].clone(),
            offset: offset + (from - at),
            len: to - from,
            unit: 0,
            generation: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn blocks_are_told_by_the_file_that_has_them() {
        let map = FileMap {
            files: vec![
                ("a".into(), vec![(0, 8192, 4096), (4096, 32768, 4096)]),
                ("b".into(), vec![(0, 12288, 8192)]),
            ],
        };
        let dir = tempfile::tempdir().unwrap();
        let recording = dir.path().join("disk.recording");
        assert!(Files::beside(&recording, 512).unwrap().call(Seq(0), &(0..100)).is_none());
        std::fs::write(dir.path().join(FILES), serde_json::to_vec(&map).unwrap()).unwrap();
        let files = Files::beside(&recording, 512).unwrap();
        let call = |blocks| files.call(Seq(0), &blocks).map(|c| (c.path, c.offset, c.len));
        assert_eq!(call(16..24), Some(("a".into(), 0, 4096)));
        assert_eq!(call(65..66), Some(("a".into(), 4608, 512)));
        assert_eq!(call(30..34), Some(("b".into(), 3072, 2048)));
        assert_eq!((call(0..16), call(40..64), call(72..99)), (None, None, None));
        std::fs::write(dir.path().join(FILES), "{").unwrap();
        assert!(Files::beside(&recording, 512).is_err());
    }
}
