//! `tornblk repro`

use super::{run, signals};
use crate::report::headline;
use crate::report::strip::{strip, utf8_locale};
use crate::report::terminal::{Live, Look};
use crate::run::{GuestArgs, Lab, RunError, repro};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct ReproArgs {
    /// The folder of a cut that a run kept, such as tornblk-out/.../raw/cut-002
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,

    /// The guest's kernel, where a guest is needed to mount the disk [default: that of the run]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,

    /// Modules of a kernel given as a file: its lib/modules/RELEASE
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,

    /// QEMU [default: that of the run, else $TORNBLK_QEMU, else qemu-system-x86_64]
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
}

impl ReproArgs {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let interrupted = signals::watch()?;
        let live = Live::new(Look::detect());
        let given = GuestArgs { kernel: self.kernel, modules: self.modules, qemu: self.qemu };
        let mut lab = |then: &GuestArgs| -> Result<Box<dyn Lab>, RunError> {
            let lab = run::lab(&given.clone().or(then.clone()), &live, &interrupted);
            Ok(Box::new(lab.map_err(|e| {
                if super::interrupted(&e) {
                    RunError::Interrupted
                } else {
                    RunError::Bad(super::sentence(&e))
                }
            })?))
        };
        let mut phase = |text: &str| live.note(text);
        let result = repro(&self.folder, &mut lab, &interrupted, &mut phase)?;
        live.finish();
        println!("state  {}", result.then.state);
        println!("sha256 {}", result.sha256);
        for finding in &result.now.findings {
            println!("{}", headline(finding));
            println!("  {}", finding.text);
            if !finding.strip.is_empty() {
                println!("  blocks {}", strip(&finding.strip, utf8_locale()));
            }
        }
        let (then, now) = (result.then.judgement.findings.len(), result.now.findings.len());
        println!("findings: {now} now, {then} then");
        Ok(u8::from(now > 0))
    }
}
