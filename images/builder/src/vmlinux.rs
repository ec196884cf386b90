//! From a bzImage to the vmlinux inside, which QEMU enters directly: under emulation that saves
//! more than a second of decompression on every boot.
//!
//! Layout: Documentation/arch/x86/boot.rst.

use crate::{KernelFormat, compress, elf};

/// What a kernel file is.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) format: KernelFormat,
    pub(crate) data: Vec<u8>,
    pub(crate) release: String,
}

/// Reads a bzImage or vmlinux; the error says why it cannot boot.
pub(crate) fn read(data: Vec<u8>) -> Result<Kernel, String> {
    if data.starts_with(b"\x7fELF") {
        let release = release_of_vmlinux(&data).ok_or("it is an ELF file, but no Linux kernel")?;
        if !elf::has_pvh_entry(&data) {
            return Err(
                "a vmlinux without a PVH entry point cannot be started directly: give the \
                        bzImage, or build with CONFIG_PVH=y"
                    .into(),
            );
        }
        return Ok(Kernel { format: KernelFormat::Vmlinux, data, release });
    }
    let header = Header::read(&data).ok_or("it is neither a bzImage nor a vmlinux for x86-64")?;
    let release = header.release(&data).ok_or("it does not tell its version")?;
    match header.vmlinux(&data) {
        Ok(vmlinux) => Ok(Kernel { format: KernelFormat::Vmlinux, data: vmlinux, release }),
        Err(why) => {
            log::info!("the kernel {release} is started as a bzImage: {why}");
            Ok(Kernel { format: KernelFormat::BzImage, data, release })
        }
    }
}

/// What is needed of the setup header.
struct Header {
    setup_sectors: usize,
    version_offset: usize,
    payload_offset: usize,
    payload_length: usize,
}

impl Header {
    fn read(data: &[u8]) -> Option<Header> {
        let u16_at = |i: usize| Some(u16::from_le_bytes(*data.get(i..)?.first_chunk()?));
        let u32_at = |i: usize| Some(u32::from_le_bytes(*data.get(i..)?.first_chunk()?) as usize);
        // Protocol 2.08 has the payload's place, 2.12 the flag XLF_KERNEL_64.
        if data.get(0x202..0x206)? != b"HdrS" || u16_at(0x206)? < 0x20c || u16_at(0x236)? & 1 == 0 {
            return None;
        }
        let setup_sectors = match data[0x1f1] {
            0 => 4,
            n => usize::from(n),
        };
        Some(Header {
            setup_sectors,
            version_offset: usize::from(u16_at(0x20e)?),
            payload_offset: u32_at(0x248)?,
            payload_length: u32_at(0x24c)?,
        })
    }

    fn release(&self, data: &[u8]) -> Option<String> {
        let text = data.get(self.version_offset + 0x200..)?;
        let text = &text[..text.iter().position(|b| *b == 0)?.min(512)];
        let release = std::str::from_utf8(text).ok()?.split(' ').next()?;
        (!release.is_empty()).then(|| release.to_owned())
    }

    fn vmlinux(&self, data: &[u8]) -> Result<Vec<u8>, String> {
        let start = (self.setup_sectors + 1) * 512 + self.payload_offset;
        let payload = data
            .get(start..)
            .and_then(|d| d.get(..self.payload_length))
            .ok_or("its payload is cut short")?;
        let vmlinux = compress::unpack(payload)
            .ok_or("its compression is not known here")?
            .map_err(|e| format!("it cannot be unpacked: {e}"))?;
        if elf::has_pvh_entry(&vmlinux) {
            Ok(vmlinux)
        } else {
            Err("it has no PVH entry point (CONFIG_PVH)".into())
        }
    }
}

/// `Linux version RELEASE (` stands in every kernel.
fn release_of_vmlinux(data: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = data;
    loop {
        let at = rest.windows(BANNER.len()).position(|w| w == BANNER)?;
        rest = &rest[at + BANNER.len()..];
        let end = rest.iter().take(128).position(|b| *b == b' ')?;
        let release = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        if release.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(release.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A bzImage with this payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut data = vec![0; 0x400];
        data[0x1f1] = 1;
        data[0x202..0x206].copy_from_slice(b"HdrS");
        data[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        data[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        data[0x236] = 1;
        data[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        data[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        data[0x300..0x30c].copy_from_slice(b"7.9.9-x (me)");
        data.extend([0; 16]);
        data.extend(payload);
        data
    }

    #[test]
    fn what_cannot_be_unpacked_stays_a_bzimage() {
        for payload in [&b"LZO?"[..], &[0x1f, 0x8b, 0, 0], b"\x28\xb5\x2f\xfd"] {
            let kernel = read(bzimage(payload)).unwrap();
            assert_eq!(kernel.format, KernelFormat::BzImage);
            assert_eq!(kernel.release, "7.9.9-x");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for data in [&b""[..], b"\x7fELF", &[0; 4096], b"#!/bin/sh"] {
            assert!(read(data.to_vec()).is_err());
        }
        let mut cut = bzimage(b"");
        cut.truncate(0x210);
        assert!(read(cut).is_err());
        let mut of_32_bits = bzimage(b"");
        of_32_bits[0x236] = 0;
        assert!(read(of_32_bits).is_err());
    }

    #[test]
    fn a_vmlinux_tells_its_release() {
        let data = b"....Linux version %s (%s)..Linux version 7.2.12+deb13 (x@y)..";
        assert_eq!(release_of_vmlinux(data).unwrap(), "7.2.12+deb13");
        assert_eq!(release_of_vmlinux(b"Linux version "), None);
    }
}
