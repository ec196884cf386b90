//! Ranges that are cloned and deduplicated, against page faults and reads of either file.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::guest::Result;
use crate::guest::race::Ctx;

pub fn race(_ctx: &Arc<Ctx>, _beat: &AtomicU64) -> Result<()> {
    Ok(())
}
