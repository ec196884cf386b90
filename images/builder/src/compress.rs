//! Unpacks what kernels and modules come packed in, by their magic numbers.

use std::io::{self, Read};

/// Unpacks the first stream of `data`, and ignores what follows it; `None` where the format is
/// not known.
pub(crate) fn unpack(data: &[u8]) -> Option<io::Result<Vec<u8>>> {
    Some(match data {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd(data),
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(data)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(lzma_rust2::XzReader::new(data, false)),
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(&data[4..]),
        _ => return None,
    })
}

fn read(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    from.read_to_end(&mut out)?;
    Ok(out)
}

fn zstd(data: &[u8]) -> io::Result<Vec<u8>> {
    // Kernels are packed with a window of 128 MiB, more than is usually taken.
    let window = 1 << 31;
    read(
        ruzstd::decoding::StreamingDecoder::new_with_max_window_size(data, window)
            .map_err(io::Error::other)?,
    )
}

/// The legacy frame that `lz4 -l` makes: blocks of 8 MiB, each after its packed length.
fn lz4_legacy(mut data: &[u8]) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        // What follows the last block is no block: no longer a sensible length.
        if length == 0 || length > rest.len() {
            break;
        }
        let (block, rest) = rest.split_at(length);
        let unpacked = lz4_flex::block::decompress(block, BLOCK).map_err(io::Error::other)?;
        let whole = unpacked.len() == BLOCK;
        out.extend(unpacked);
        data = rest;
        if !whole {
            break;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn formats_are_told_by_their_magic() {
        let text = b"the same again, the same again, the same again";
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(text).unwrap();
        let mut packed = gz.finish().unwrap();
        packed.extend(b"trailer");
        assert_eq!(unpack(&packed).unwrap().unwrap(), text);
        packed.truncate(20);
        assert!(unpack(&packed).unwrap().is_err());
        assert!(unpack(b"\x7fELF").is_none());
        assert!(unpack(b"").is_none());
    }

    #[test]
    fn zstd_and_xz_as_their_tools_write_them() {
        let text = "abc".repeat(11);
        // `zstd -19`
        let zst = hex("28b52ffd04684d00001861626301008a6e083afa61eb");
        assert_eq!(unpack(&zst).unwrap().unwrap(), text.as_bytes());
        // `xz --x86 --lzma2`, as kernels are packed
        let xz = hex(
            "fd377a585a000004e6d6b44602010400210116000d86351fe0002000095d00309888ab033c1980000000\
             0000beee7c74b0c6702f0001252192751c841fb6f37d010000000004595a",
        );
        assert_eq!(unpack(&xz).unwrap().unwrap(), text.as_bytes());
        for cut in [5, 12, zst.len() - 5] {
            assert!(unpack(&zst[..cut]).unwrap().is_err(), "{cut}");
        }
    }

    #[test]
    fn lz4_stops_at_what_is_no_block() {
        let text = vec![7_u8; 100_000];
        let block = lz4_flex::block::compress(&text);
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(&block);
        packed.extend(100_000_u32.to_le_bytes());
        assert_eq!(unpack(&packed).unwrap().unwrap(), text);
    }

    fn hex(s: &str) -> Vec<u8> {
        s.as_bytes()
            .chunks(2)
            .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 16).unwrap())
            .collect()
    }
}
