//! Where files lie, as `filefrag -v` of e2fsprogs says: for a guest that is not ours.

use tornblk_agent::channel::{FileMap, Place};

/// BTRFS_SUPER_MAGIC (linux/magic.h), as it is printed.
const BTRFS: &str = "9123683e";

/// Reads its output. `start`: where on the disk the file system begins (bytes).
///
/// # Errors
/// It is none: a sentence.
pub fn filefrag(text: &str, start: u64) -> Result<FileMap, String> {
    let mut map = FileMap::default();
    let mut unit = 0;
    for line in text.lines() {
        if line.strip_prefix("Filesystem type is: ").map(str::trim) == Some(BTRFS) {
            return Err(
                "it is of btrfs, which says where files lie in addresses of its own and not in the disk's"
                    .to_owned(),
            );
        }
        if let Some((path, bytes)) = head(line) {
            unit = bytes;
            map.files.push((path.to_owned(), Vec::new()));
            continue;
        }
        let Some((place, known)) = extent(line, unit, start) else { continue };
        let Some((_, places)) = map.files.last_mut() else {
            return Err("there is an extent before the first file".to_owned());
        };
        if known {
            places.push(place);
        } else {
            map.more = true;
        }
    }
    if map.files.is_empty() {
        return Err(
            "there is no line 'File size of ...': it must be what `filefrag -v` says".to_owned()
        );
    }
    Ok(map)
}

/// `File size of PATH is N (M blocks of B bytes)`: the path, and B.
fn head(line: &str) -> Option<(&str, u64)> {
    let rest = line.strip_prefix("File size of ")?;
    let (rest, blocks) = rest.rsplit_once(" (")?;
    let (path, _) = rest.rsplit_once(" is ")?;
    let bytes = blocks.strip_suffix(" bytes)")?.rsplit_once(' ')?.1;
    Some((path, bytes.parse().ok().filter(|bytes| *bytes > 0)?))
}

/// `N: FROM.. TO: FROM.. TO: BLOCKS: [EXPECTED:] FLAGS`, and whether its place means anything.
fn extent(line: &str, unit: u64, start: u64) -> Option<(Place, bool)> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let [number, logical, physical, length, .., flags] = fields.as_slice() else { return None };
    number.parse::<u64>().ok()?;
    let from = |range: &str| range.split("..").next()?.trim().parse::<u64>().ok();
    let length: u64 = length.parse().ok()?;
    // linux/fiemap.h, as filefrag spells it.
    let nowhere = ["unknown_loc", "delalloc", "encoded", "inline", "not_aligned"];
    let known = !flags.split(',').any(|flag| nowhere.contains(&flag));
    let bytes = |blocks: u64| blocks.checked_mul(unit);
    let at = bytes(from(physical)?)?.checked_add(start)?;
    Some(((bytes(from(logical)?)?, at, bytes(length)?), known))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn filefrags_lines_are_read() {
        let text = "Filesystem type is: ef53
File size of t/a is b.ibd is 49152 (12 blocks of 4096 bytes)
 ext:     logical_offset:        physical_offset: length:   expected: flags:
   0:        0..       7:      34816..     34823:      8:
   1:        8..      11:      40960..     40963:      4:      34824: last,eof
t/a is b.ibd: 2 extents found
File size of new is 4096 (1 block of 4096 bytes)
 ext:     logical_offset:        physical_offset: length:   expected: flags:
   0:        0..       0:          0..         0:      1:             last,unknown_loc,delalloc,eof
new: 1 extent found
";
        let map = filefrag(text, 1 << 20).unwrap();
        let a: Vec<Place> =
            vec![(0, 34816 * 4096 + (1 << 20), 32768), (32768, 40960 * 4096 + (1 << 20), 16384)];
        assert_eq!(map.files, [("t/a is b.ibd".to_owned(), a), ("new".to_owned(), Vec::new())]);
        assert!(map.more);
        assert!(filefrag("no such thing\n", 0).is_err());
        let btrfs = format!("Filesystem type is: 9123683e\n{text}");
        assert!(filefrag(&btrfs, 0).unwrap_err().contains("btrfs"));
        let ext4 = format!("Filesystem type is: ef53\n{text}");
        assert!(filefrag(&ext4, 1 << 20).is_ok());
        assert!(filefrag("   0: 0.. 7: 1.. 8: 8: eof\n", 0).is_err());
    }
}
