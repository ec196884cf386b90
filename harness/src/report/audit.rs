//! What the page audit found, on the terminal.

use super::terminal::Look;
use crate::audit::{Audit, Carrier, Fate, NAMED, Named, PageWrites, Promised};
use comfy_table::presets::{ASCII_BORDERS_ONLY_CONDENSED, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use std::io::{self, Write};
use tornblk_model::crash::size;

/// Requests of one page write that are shown.
const CARRIERS: usize = 4;

/// # Errors
/// It cannot be written.
pub fn write(
    pages: &PageWrites,
    audits: &[Audit],
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let long = size::print(pages.page_size);
    let overwrites = pages.writes.iter().filter(|write| write.overwrites).count();
    writeln!(
        out,
        "{} writes of {long} pages in {} files, {overwrites} of them of pages that had been written before",
        pages.writes.len(),
        pages.files.len()
    )?;
    if pages.more {
        writeln!(
            out,
            "there are files, or parts of files, of which the recording does not say where they lie"
        )?;
    }
    if pages.wiped > 0 {
        writeln!(
            out,
            "{} times pages were zeroed or discarded after they had been written: of what a power cut leaves of \
             these nothing is said",
            pages.wiped
        )?;
    }
    if pages.writes.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", table(audits, look))?;
    for audit in audits.iter().filter(|audit| audit.verdict() == Promised::NotAll) {
        let torn = audit.page_writes - audit.of(Fate::Whole);
        let head = format!(
            "{}: {torn} of {} page writes may be torn by a power cut",
            audit.profile, audit.page_writes
        );
        writeln!(out, "{}", look.paint(&head, "1"))?;
        // What no page of this disk can be spared needs no list.
        let of_the_disk = [Fate::NotPromised, Fate::NotAtomic];
        let same = of_the_disk.iter().any(|fate| audit.of(*fate) == audit.page_writes);
        let shown = if same { 1 } else { NAMED };
        let named: Vec<&Named> = audit.named.iter().take(shown).collect();
        for named in &named {
            writeln!(out, "  {}", told(named))?;
        }
        let rest = torn - named.len() as u64;
        if rest > 0 {
            writeln!(out, "  and {rest} more")?;
        }
        for advice in &audit.advice {
            writeln!(out, "  try: {advice}")?;
        }
    }
    Ok(())
}

/// "t.ibd page 12: split: request 40 (4k at 81920), ..."
pub fn told(named: &Named) -> String {
    let Named { file, page, fate, carriers, .. } = named;
    let one =
        |c: &Carrier| format!("request {} ({} at {})", c.request, size::print(c.len), c.offset);
    let mut requests: Vec<String> = carriers.iter().take(CARRIERS).map(one).collect();
    if carriers.len() > CARRIERS {
        requests.push(format!("{} more", carriers.len() - CARRIERS));
    }
    format!("{file} page {page}: {fate}: {}", requests.join(", "))
}

fn table(audits: &[Audit], look: Look) -> String {
    // Columns for what occurred.
    let fates: Vec<Fate> =
        Fate::TORN.into_iter().filter(|fate| audits.iter().any(|a| a.of(*fate) > 0)).collect();
    let mut table = Table::new();
    table.load_style(if look.utf8 { UTF8_FULL_CONDENSED } else { ASCII_BORDERS_ONLY_CONDENSED });
    let mut header = vec!["profile".to_owned(), "page writes".to_owned(), "whole".to_owned()];
    header.extend(fates.iter().map(Fate::to_string));
    header.push("no tearing is".to_owned());
    let numbers = header.len() - 1;
    table.set_header(header);
    for audit in audits {
        let mut row = vec![audit.profile.clone(), audit.page_writes.to_string()];
        row.push(audit.of(Fate::Whole).to_string());
        row.extend(fates.iter().map(|fate| audit.of(*fate).to_string()));
        row.push(audit.verdict().to_string());
        table.add_row(row);
    }
    for column in 1..numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::audit::{PageWrite, audit};

    #[test]
    fn it_names_what_may_be_torn_and_what_to_try() {
        let carrier =
            |request, offset, len| Carrier { request, offset, len, atomic: false, failed: false };
        let write = |page, carriers: Vec<Carrier>| PageWrite {
            file: 0,
            page,
            at: Some(carriers[0].offset),
            complete: true,
            overwrites: page == 1,
            carriers,
        };
        let halves = vec![carrier(7, 16384, 8192), carrier(8, 24576, 8192)];
        let pages = PageWrites {
            page_size: 16384,
            lb_size: 512,
            files: vec!["t/a.ibd".into()],
            writes: vec![write(0, vec![carrier(5, 0, 16384)]), write(1, halves)],
            snapshots: 2,
            more: false,
            wiped: 0,
        };
        let mut one = audit(&pages, &"req16k".parse().unwrap());
        one.advice.push("something".into());
        let mut out = Vec::new();
        let plain = Look { utf8: false, colour: false };
        super::write(&pages, &[one], plain, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in [
            "2 writes of 16k pages in 1 files, 1 of them of pages that had been written before",
            "req16k: 1 of 2 page writes may be torn by a power cut",
            "  t/a.ibd page 1: split: request 7 (8k at 16384), request 8 (8k at 24576)",
            "  try: something",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(text.contains("not promised"), "{text}");
    }
}
