//! `tornblk image`

use crate::out::{note, say};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tornblk_image::{KernelSource, Request};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Build what a guest boots, or find it in the cache
    Build(BuildArgs),
    /// List the images in the cache
    List,
    /// Remove all but the last used image of each kernel, and what no image needs
    Gc,
}

#[derive(Debug, Args)]
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
                    ..Request::new(kernel)
                };
                let image = tornblk_image::build(&request, &mut |text| note!("{text}"))?;
                say!("kernel {} in {}", image.release, image.dir.display());
            }
            ImageCommand::List => {
                for image in tornblk_image::list(None)? {
                    say!(
                        "{}  {:>5} MiB  used {}  {}",
                        image.lock.kernel.release,
                        image.size >> 20,
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

fn ago(time: SystemTime) -> String {
    let age = SystemTime::now().duration_since(time).unwrap_or(Duration::ZERO).as_secs();
    match age {
        0..3600 => format!("{} min ago", age / 60),
        3600..172_800 => format!("{} h ago", age / 3600),
        _ => format!("{} days ago", age / 86400),
    }
}
