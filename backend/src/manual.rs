//! `tornblkd --manual DIR`: its manual page (man1) and completions, of the definition that it goes by itself. For packages, and
//! nothing that a disk needs: it is not among the options.

use crate::options::Options;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The folder, where that is what was asked for.
pub(crate) fn asked(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Option<PathBuf> {
    let first = arguments.nth(1)?;
    let dir = arguments.next()?;
    (first == OsStr::new("--manual") && arguments.next().is_none()).then(|| PathBuf::from(dir))
}

pub(crate) fn write(dir: &Path) -> anyhow::Result<()> {
    let (pages, completions) = (dir.join("man1"), dir.join("completions"));
    for folder in [&pages, &completions] {
        std::fs::create_dir_all(folder)?;
    }
    clap_mangen::generate_to(Options::command(), &pages)?;
    let page = pages.join("tornblkd.1");
    std::fs::write(&page, named(&std::fs::read_to_string(&page)?))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Options::command(), "tornblkd", &completions)?;
    }
    Ok(())
}

/// What the help ends with is called what it is, and its lines are not filled.
fn named(page: &str) -> String {
    let Some((head, rest)) = page.split_once(".SH EXTRA\n") else { return page.to_owned() };
    let (told, rest) = match rest.find("\n.SH ") {
        Some(at) => rest.split_at(at + 1),
        None => (rest, ""),
    };
    format!("{head}.SH EXAMPLES\n.nf\n{told}.fi\n{rest}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_has_a_page_with_examples_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let page = read("man1/tornblkd.1");
        assert!(
            page.contains(".SH EXAMPLES\n.nf\n") && page.contains(".fi\n.SH VERSION"),
            "{page}"
        );
        for file in ["tornblkd.bash", "_tornblkd", "tornblkd.fish"] {
            assert!(read(&format!("completions/{file}")).contains("record-payload"), "{file}");
        }
        let words = |line: &str| asked(line.split(' ').map(Into::into));
        assert_eq!(words("tornblkd --manual d"), Some("d".into()));
        assert_eq!(words("tornblkd --socket s --manual d"), None);
        assert_eq!(words("tornblkd --manual"), None);
    }
}
