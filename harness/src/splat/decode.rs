//! Functions of a trace become lines of source: `xfs_foo+0x12/0x34 [xfs]` is looked up in the
//! symbols and the DWARF of the kernel that ran, or of its module.
//!
//! A place is a symbol and an offset, so where the kernel was loaded does not matter. The size that
//! stands behind tells functions of the same name apart.

use addr2line::gimli::{Dwarf, DwarfSections, EndianSlice, LittleEndian, SectionId};
use object::read::{Object as _, ObjectSection as _, ObjectSymbol as _};
use object::{ObjectKind, RelocationTarget, SectionFlags, SectionIndex};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Where a kernel's symbols are.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    vmlinux: Option<PathBuf>,
    /// Where it was built, modules too.
    tree: Option<PathBuf>,
}

/// `symbol+offset/size [module]` in a line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    symbol: String,
    offset: u64,
    size: u64,
    module: Option<String>,
    /// Where the processor was; else the place that it would have returned to, which is behind the
    /// call.
    exact: bool,
}

impl Symbols {
    /// Of a kernel as it was given: a build tree, or a file.
    pub fn of(kernel: &Path) -> Symbols {
        if !kernel.is_dir() {
            return Symbols { vmlinux: Some(kernel.to_owned()), tree: None };
        }
        let vmlinux = Some(kernel.join("vmlinux")).filter(|path| path.is_file());
        Symbols { vmlinux, tree: Some(kernel.to_owned()) }
    }

    /// The lines, with file and line behind each place that can be told.
    pub fn decode(&self, lines: &[String]) -> Vec<String> {
        let places: Vec<Option<Place>> = lines.iter().map(|line| place(line)).collect();
        let mut by_object: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
        for (i, place) in places.iter().enumerate() {
            if let Some(object) = place.as_ref().and_then(|place| self.object(place)) {
                by_object.entry(object).or_default().push(i);
            }
        }
        let mut out = lines.to_vec();
        for (path, at) in by_object {
            let wanted: Vec<&Place> = at.iter().filter_map(|i| places[*i].as_ref()).collect();
            match self.lines_of(&path, &wanted) {
                Ok(found) => {
                    for (i, line) in at.into_iter().zip(found) {
                        if let Some(line) = line {
                            out[i] = format!("{} {line}", out[i]);
                        }
                    }
                }
                Err(why) => log::warn!(
                    "a trace is not told with lines of source: {}: {why}",
                    path.display()
                ),
            }
        }
        out
    }

    fn object(&self, place: &Place) -> Option<PathBuf> {
        let Some(module) = &place.module else { return self.vmlinux.clone() };
        let tree = self.tree.as_ref()?;
        let order = std::fs::read_to_string(tree.join("modules.order")).ok()?;
        // In the kernel a module's name has no dashes, whatever its file is called.
        let path = order.lines().map(Path::new).find(|path| {
            path.file_stem().is_some_and(|s| s.to_string_lossy().replace('-', "_") == *module)
        })?;
        let path = path.strip_prefix("kernel").unwrap_or(path);
        Some(tree.join(path).with_extension("ko")).filter(|path| path.is_file())
    }

    /// Where these places of one object are in its source; `None` where that is not known.
    fn lines_of(&self, path: &Path, wanted: &[&Place]) -> Result<Vec<Option<String>>, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let data = std::fs::read(path).map_err(|e| text(&e))?;
        let file = object::File::parse(&*data).map_err(|e| text(&e))?;
        let bases = Bases::of(&file);
        let mut found: HashMap<&str, Vec<(u64, u64)>> = HashMap::new();
        for symbol in file.symbols().filter(|s| s.is_definition()) {
            let Ok(name) = symbol.name() else { continue };
            if wanted.iter().any(|place| place.symbol == name) {
                let address = symbol.address() + bases.of_section(symbol.section_index());
                found.entry(name).or_default().push((address, symbol.size()));
            }
        }
        let load = |id: SectionId| section(&file, &bases, id.name());
        let sections = DwarfSections::load(load).map_err(|e| text(&e))?;
        let dwarf: Dwarf<EndianSlice<'_, LittleEndian>> =
            sections.borrow(|data| EndianSlice::new(data, LittleEndian));
        let context = addr2line::Context::from_dwarf(dwarf).map_err(|e| text(&e))?;
        let mut out = Vec::with_capacity(wanted.len());
        for place in wanted {
            let there = found.get(place.symbol.as_str()).map_or(&[][..], Vec::as_slice);
            // A size that does not fit: another build's symbols.
            let symbol = there.iter().find(|(_, size)| *size == 0 || fits(*size, place.size));
            let Some((address, _)) = symbol else {
                out.push(None);
                continue;
            };
            let back = u64::from(!place.exact && place.offset > 0);
            out.push(self.frames(&context, address + place.offset - back));
        }
        Ok(out)
    }

    fn frames(
        &self,
        context: &addr2line::Context<EndianSlice<'_, LittleEndian>>,
        address: u64,
    ) -> Option<String> {
        let mut frames = context.find_frames(address).skip_all_loads().ok()?;
        let mut text = String::new();
        while let Ok(Some(frame)) = frames.next() {
            let Some(location) = frame.location else { continue };
            let (Some(file), Some(line)) = (location.file, location.line) else { continue };
            let here = format!("{}:{line}", self.short(file));
            text += &if text.is_empty() { here } else { format!(", inlined at {here}") };
        }
        (!text.is_empty()).then(|| format!("({text})"))
    }

    /// As it stands in the tree.
    fn short<'a>(&self, file: &'a str) -> Cow<'a, str> {
        let tree = self.tree.as_ref().and_then(|tree| std::fs::canonicalize(tree).ok());
        match tree.and_then(|tree| Path::new(file).strip_prefix(tree).ok().map(Path::to_owned)) {
            Some(within) => within.display().to_string().trim_start_matches("./").to_owned().into(),
            None => file.into(),
        }
    }
}

/// What kallsyms says reaches to the next symbol; what ELF says does not cover the padding.
fn fits(elf: u64, printed: u64) -> bool {
    elf <= printed && printed - elf < 64
}

/// Where the sections of a module are meant to lie: in its file all begin at 0.
struct Bases(HashMap<SectionIndex, u64>);

impl Bases {
    fn of(file: &object::File<'_>) -> Bases {
        let mut bases = HashMap::new();
        if file.kind() == ObjectKind::Relocatable {
            let mut next = 0x1000;
            for section in file.sections() {
                let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
                if sh_flags.0 & object::elf::SHF_ALLOC.0 != 0 {
                    bases.insert(section.index(), next);
                    next += section.size().next_multiple_of(0x1000) + 0x1000;
                }
            }
        }
        Bases(bases)
    }

    fn of_section(&self, index: Option<SectionIndex>) -> u64 {
        index.and_then(|index| self.0.get(&index)).copied().unwrap_or(0)
    }
}

/// A debug section, with its relocations made where the file was not linked; empty if there is none.
fn section<'a>(
    file: &object::File<'a>,
    bases: &Bases,
    name: &str,
) -> Result<Cow<'a, [u8]>, object::read::Error> {
    let Some(section) = file.section_by_name(name) else { return Ok(Cow::Borrowed(&[])) };
    let mut data = section.uncompressed_data()?;
    if bases.0.is_empty() {
        return Ok(data);
    }
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else { continue };
        let symbol = file.symbol_by_index(index)?;
        let base = symbol.address() + bases.of_section(symbol.section_index());
        let value = base.wrapping_add_signed(relocation.addend());
        let (Ok(at), size) = (usize::try_from(offset), usize::from(relocation.size() / 8)) else {
            continue;
        };
        if let Some(place) = at.checked_add(size).and_then(|end| data.to_mut().get_mut(at..end)) {
            place.copy_from_slice(&value.to_le_bytes()[..size.min(8)]);
        }
    }
    Ok(data)
}

/// The place that a line of a trace tells.
fn place(line: &str) -> Option<Place> {
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        // "RIP: 0010:f+0x1/0x2", and "f+0x1/0x2," in a warning's title.
        let word = word.strip_prefix("0010:").unwrap_or(word).trim_end_matches(',');
        let Some((symbol, rest)) = word.split_once("+0x") else { continue };
        let Some((offset, size)) = rest.split_once("/0x") else { continue };
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (Some(offset), Some(size)) = (hex(offset), hex(size)) else { continue };
        // "[xfs]", or with a build id behind the name.
        let module = words.peek().and_then(|next| next.strip_prefix('['));
        let module = module.map(|name| name.trim_end_matches(']').to_owned());
        let exact = ["RIP: ", "WARNING: ", " in "].iter().any(|w| line.contains(w));
        return Some(Place { symbol: symbol.to_owned(), offset, size, module, exact });
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn places_are_read_from_every_kind_of_line() {
        let read = |line: &str| {
            place(line).map(|p| (p.symbol, p.offset, p.size, p.module.unwrap_or_default(), p.exact))
        };
        let of = |s: &str, m: &str, exact| Some((s.to_owned(), 0x1c, 0x2a0, m.to_owned(), exact));
        assert_eq!(read("[    1.5]  ? vfs_write+0x1c/0x2a0"), of("vfs_write", "", false));
        assert_eq!(read(" xfs_a.isra.0+0x1c/0x2a0 [xfs]"), of("xfs_a.isra.0", "xfs", false));
        assert_eq!(read(" xfs_a+0x1c/0x2a0 [xfs 12ab34cd]"), of("xfs_a", "xfs", false));
        assert_eq!(read("RIP: 0010:f+0x1c/0x2a0 [xfs]"), of("f", "xfs", true));
        assert_eq!(read("WARNING: CPU: 0 PID: 1 at fs/a.c:1 f+0x1c/0x2a0"), of("f", "", true));
        assert_eq!(read("WARNING: fs/a.c:1 at f+0x1c/0x2a0, CPU#0: x/1"), of("f", "", true));
        assert_eq!(read("BUG: KASAN: slab-out-of-bounds in f+0x1c/0x2a0"), of("f", "", true));
        assert_eq!(read("Code: 00 01+0x 2"), None);
    }

    /// A program in which `outer` calls `inner` in line 4, made as the kernel and its modules are.
    fn compiled(dir: &Path, out: &str, how: &[&str]) -> (PathBuf, u64, u64) {
        let source = "int other(void);\n\
                      static inline __attribute__((always_inline)) int within(int x)\n{\n\
                      \treturn other() + x;\n}\n\
                      int spare(void) { return 1; }\n\
                      int outer(int x)\n{\n\tif (x)\n\t\treturn within(x) + 1;\n\treturn 0;\n}\n";
        std::fs::write(dir.join("a.c"), source).unwrap();
        std::fs::write(
            dir.join("b.c"),
            "int other(void) { return 2; }\nint main(void) { return 0; }\n",
        )
        .unwrap();
        let built = Command::new("gcc")
            .args(["-g", "-O1", "-fno-inline", "-ffunction-sections", "-o", out])
            .args(how)
            .current_dir(dir)
            .status()
            .unwrap();
        assert!(built.success());
        let path = dir.join(out);
        let data = std::fs::read(&path).unwrap();
        let file = object::File::parse(&*data).unwrap();
        let outer = file.symbols().find(|s| s.name() == Ok("outer")).unwrap();
        // The call: e8, and where it goes; what it would return to is behind it.
        let section = file.section_by_index(outer.section_index().unwrap()).unwrap();
        let start = (outer.address() - section.address()) as usize;
        let code = &section.data().unwrap()[start..start + outer.size() as usize];
        let call = code.iter().position(|b| *b == 0xe8).unwrap() as u64;
        (path, call + 5, outer.size())
    }

    #[test]
    fn a_place_becomes_the_line_of_the_call_through_inlined_functions() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        std::fs::create_dir(dir.join("fs")).unwrap();
        let (_, offset, size) = compiled(dir, "vmlinux", &["a.c", "b.c", "-no-pie"]);
        let (_, in_module, its_size) = compiled(dir, "fs/my-fs.ko", &["-c", "a.c"]);
        std::fs::write(dir.join("modules.order"), "fs/my-fs.o\n").unwrap();
        let symbols = Symbols::of(dir);
        let lines = [
            format!("[    1.000000]  outer+0x{offset:x}/0x{size:x}"),
            format!(" outer+0x{in_module:x}/0x{its_size:x} [my_fs]"),
            format!(" outer+0x{offset:x}/0x{:x}", size + 1000),
            format!(" nowhere+0x{offset:x}/0x{size:x}"),
            format!(" outer+0x{offset:x}/0x{size:x} [gone]"),
            "Call Trace:".to_owned(),
        ];
        let decoded = symbols.decode(&lines);
        let place = "(a.c:4, inlined at a.c:10)";
        assert_eq!(decoded[0], format!("{} {place}", lines[0]));
        assert_eq!(decoded[1], format!("{} {place}", lines[1]));
        // Of another build, of nobody, of a module that is not there, and no place.
        assert_eq!(decoded[2..], lines[2..]);
    }

    #[test]
    fn without_symbols_nothing_changes() {
        let tmp = tempfile::tempdir().unwrap();
        let lines = [" vfs_write+0x1c/0x2a0".to_owned()];
        assert_eq!(Symbols::default().decode(&lines), lines);
        assert_eq!(Symbols::of(tmp.path()).decode(&lines), lines);
        std::fs::write(tmp.path().join("bzImage"), "MZ").unwrap();
        assert_eq!(Symbols::of(&tmp.path().join("bzImage")).decode(&lines), lines);
    }
}
