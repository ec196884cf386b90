//! `tornblk image`

use super::examples;
use crate::out::{note, say};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tornblk_image::kconfig::{self, Need};
use tornblk_image::{KernelSource, Request};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Build what a guest boots, or find it in the cache
    Build(BuildArgs),
    /// List the images in the cache
    #[command(after_help = examples::IMAGE_LIST)]
    List,
    /// Remove all but the last used image of each kernel, and what no image needs
    #[command(after_help = examples::IMAGE_GC)]
    Gc,
    /// Print what a kernel of your own has to have, as a fragment of its configuration
    ///
    /// For scripts/kconfig/merge_config.sh, or to be appended to the .config of `make tinyconfig`;
    /// then `make olddefconfig`.
    Kconfig(KconfigArgs),
}

#[derive(Debug, Args)]
#[command(after_help = examples::IMAGE_KCONFIG)]
pub(super) struct KconfigArgs {
    /// Add what makes bugs of the kernel show: debugging symbols, lockdep, KASAN and others
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::IMAGE_BUILD)]
pub(super) struct BuildArgs {
    /// A series (7.2), a version (7.2.12), a bzImage or vmlinux, or a folder in which a kernel was
    /// built
    #[arg(long, value_name = "KERNEL", default_value = tornblk_image::DEFAULT_KERNEL)]
    kernel: String,

    /// Modules of a kernel given as a file: its lib/modules/RELEASE
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,

    /// The agent's static binary
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// Ask the mirror again for the newest versions
    #[arg(long)]
    refresh: bool,
}

impl ImageCommand {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            ImageCommand::Build(args) => {
                let kernel: KernelSource = args.kernel.parse()?;
                let request = Request {
                    modules: args.modules,
                    agent: args.agent,
                    refresh: args.refresh,
                    stop: Some(super::signals::watch()?),
                    ..Request::new(kernel.clone())
                };
                let image = tornblk_image::build(&request, &mut |text| note!("{text}"))?;
                if let KernelSource::BuildTree(tree) = &kernel {
                    tell_missing(tree);
                }
                say!("kernel {} in {}", image.release, image.dir.display());
                match image.guest_module() {
                    Ok(path) => say!("guest module {path}"),
                    Err(why) => say!("no guest module: {why}"),
                }
            }
            ImageCommand::Kconfig(args) => say!("{}", kconfig::fragment(args.debug).trim_end()),
            ImageCommand::List => {
                for image in tornblk_image::list(None)? {
                    say!(
                        "{}  {:>5} MiB  {:9}  used {}  {}",
                        image.lock.kernel.release,
                        image.size >> 20,
                        if image.lock.guest_module().is_ok() { "module" } else { "no module" },
                        ago(image.last_used),
                        image.dir.display()
                    );
                }
            }
            ImageCommand::Gc => {
                let freed = tornblk_image::gc(None, &mut |text| note!("{text}"))?;
                say!(
                    "removed {} images and {} packages, {} MiB",
                    freed.images,
                    freed.packages,
                    freed.freed >> 20
                );
            }
        }
        Ok(0)
    }
}

/// The options of a kernel of the user's own that guests want and it has not.
pub(super) fn tell_missing(tree: &std::path::Path) {
    let missing = match kconfig::missing_in(tree) {
        Ok(missing) => missing,
        Err(e) => return note!("whether the kernel has all that guests want is not known: {e}"),
    };
    for option in &missing {
        let weight = if option.need == Need::Guest { "needed" } else { "wanted" };
        note!("{weight}: {option}");
    }
    if !missing.is_empty() {
        note!("`tornblk image kconfig` prints all options that guests want");
    }
}

fn ago(time: SystemTime) -> String {
    let age = SystemTime::now().duration_since(time).unwrap_or(Duration::ZERO).as_secs();
    match age {
        0..3600 => format!("{} min ago", age / 60),
        3600..172_800 => format!("{} h ago", age / 3600),
        _ => format!("{} days ago", age / 86400),
    }
}
