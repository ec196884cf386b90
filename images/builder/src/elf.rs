//! The little that is read from ELF files.

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};

type Elf<'a> = ElfFile64<'a, object::Endianness>;

/// Shared libraries that it names (DT_NEEDED); nothing where it is no dynamic ELF file.
pub(crate) fn needed(data: &[u8]) -> Vec<String> {
    let Ok(elf) = Elf::parse(data) else { return Vec::new() };
    let Ok(table) = elf.elf_dynamic_table() else { return Vec::new() };
    table
        .iter()
        .filter(|d| d.tag == object::elf::DT_NEEDED)
        .filter_map(|d| table.string(d).ok())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// The program that loads this one (`/lib64/ld-linux-x86-64.so.2`), if it is a dynamic one.
pub(crate) fn interpreter(data: &[u8]) -> Option<String> {
    use object::read::elf::ProgramHeader as _;
    let elf = Elf::parse(data).ok()?;
    let endian = elf.endian();
    let path = elf
        .elf_program_headers()
        .iter()
        .find_map(|p| p.interpreter(endian, data).ok().flatten())?;
    Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned())
}

/// Whether the program has no interpreter, so that it runs where there are no libraries.
pub(crate) fn is_static_program(data: &[u8]) -> bool {
    let Ok(elf) = Elf::parse(data) else { return false };
    let endian = elf.endian();
    elf.elf_header().e_entry.get(endian) != 0 && interpreter(data).is_none()
}

/// The values of a field in a kernel module's `.modinfo` section (`name=value`, NUL-terminated, one
/// after the other).
pub(crate) fn modinfo(data: &[u8], field: &str) -> Vec<String> {
    let Ok(elf) = Elf::parse(data) else { return Vec::new() };
    let Some(section) = elf.section_by_name(".modinfo") else { return Vec::new() };
    let entries = section.data().unwrap_or_default().split(|b| *b == 0);
    entries
        .filter_map(|entry| {
            let entry = std::str::from_utf8(entry).ok()?;
            Some(entry.strip_prefix(field)?.strip_prefix('=')?.to_owned())
        })
        .collect()
}

/// Whether QEMU can enter the kernel directly: an ELF note of Xen's, type 18
/// (XEN_ELFNOTE_PHYS32_ENTRY).
pub(crate) fn has_pvh_entry(data: &[u8]) -> bool {
    use object::read::elf::ProgramHeader as _;
    let Ok(elf) = Elf::parse(data) else { return false };
    let endian = elf.endian();
    elf.elf_program_headers().iter().any(|program| {
        let Ok(Some(mut notes)) = program.notes(endian, data) else { return false };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Xen" && note.n_type(endian).0 == 18 {
                return true;
            }
        }
        false
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_dynamic_program_names_its_libraries() {
        // The test program itself.
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needed(&me).iter().any(|n| n == "libc.so.6"), "{:?}", needed(&me));
        assert!(interpreter(&me).unwrap().ends_with(".so.2"));
        assert!(!is_static_program(&me));
        assert!(!has_pvh_entry(&me));
        assert!(modinfo(&me, "depends").is_empty());
    }

    #[test]
    fn what_is_no_elf_has_nothing() {
        assert!(needed(b"#!/bin/sh").is_empty());
        assert!(!is_static_program(b""));
        assert!(!has_pvh_entry(&[0x7f, b'E', b'L', b'F']));
    }
}
