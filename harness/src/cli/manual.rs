//! `tornblk manual`: manual pages and completions, of the definition that the program itself goes by.

use super::Cli;
use crate::out::say;
use anyhow::Context;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// Shells that have completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Write manual pages (man1) and shell completions (completions) into a folder
#[derive(Debug, Args)]
#[command(after_help = super::examples::MANUAL)]
pub(super) struct ManualArgs {
    /// The folder; made where it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl ManualArgs {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let (pages, completions) = (self.dir.join("man1"), self.dir.join("completions"));
        for folder in [&pages, &completions] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let cannot = |path: &Path| format!("cannot write into {}", path.display());
        // It asks each command for its own page.
        clap_mangen::generate_to(Cli::command(), &pages).with_context(|| cannot(&pages))?;
        examples(&pages).with_context(|| cannot(&pages))?;
        for shell in SHELLS {
            clap_complete::generate_to(shell, &mut Cli::command(), "tornblk", &completions)
                .with_context(|| cannot(&completions))?;
        }
        let dir = self.dir.display();
        say!("manual pages in {dir}/man1, completions for bash, zsh and fish in {dir}/completions");
        say!("next: man -l {dir}/man1/tornblk-run.1");
        Ok(0)
    }
}

/// What a page's help ends with is called what it is, and its lines are not filled.
fn examples(pages: &Path) -> std::io::Result<()> {
    for page in std::fs::read_dir(pages)? {
        let path = page?.path();
        let text = std::fs::read_to_string(&path)?;
        let Some((head, rest)) = text.split_once(".SH EXTRA\n") else { continue };
        let (told, rest) = match rest.find("\n.SH ") {
            Some(at) => rest.split_at(at + 1),
            None => (rest, ""),
        };
        std::fs::write(&path, format!("{head}.SH EXAMPLES\n.nf\n{told}.fi\n{rest}"))?;
    }
    Ok(())
}
