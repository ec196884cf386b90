//! Writes tornblkd's manual page (man1) and completions into a folder, of the definition that it goes by itself. No part
//! of tornblkd, which is the smaller for it. `cargo run -p tornblk-backend --features
//! manual --example manual DIR`

#[path = "../src/options.rs"]
#[allow(dead_code, unreachable_pub)]
mod options;

use clap::CommandFactory as _;
use clap_complete::Shell;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or_else(|| anyhow::anyhow!("which folder? manual DIR"))?;
    let (pages, completions) = (dir.join("man1"), dir.join("completions"));
    for folder in [&pages, &completions] {
        std::fs::create_dir_all(folder)?;
    }
    clap_mangen::generate_to(options::Options::command(), &pages)?;
    // The examples' lines are not filled; nothing else comes behind them but the version.
    let page = pages.join("tornblkd.1");
    let text = std::fs::read_to_string(&page)?.replace(".SH EXTRA\n", ".SH EXAMPLES\n.nf\n");
    std::fs::write(&page, text.replace("\n.SH VERSION", "\n.fi\n.SH VERSION"))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(
            shell,
            &mut options::Options::command(),
            "tornblkd",
            &completions,
        )?;
    }
    Ok(())
}
