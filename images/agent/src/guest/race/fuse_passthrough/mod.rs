//! The races of suite `fuse-passthrough`.

use std::sync::Arc;

use super::Ctx;
use crate::guest::{Error, Result};

/// Runs the lane's race.
///
/// # Errors
/// It could not be carried out.
pub fn run(ctx: &Arc<Ctx>) -> Result<()> {
    Err(Error::Refused(format!("there is no race of {} yet", ctx.race.name)))
}
