//! A unit as a row of blocks: new, old, or neither.

use crate::oracle::Cell;

/// The widest strip: longer ones put several blocks into one sign.
pub const WIDTH: usize = 64;

/// `■■■□□□□□`, or `###.....` where `utf8` is not set. A sign for blocks that differ is `▨` (`%`),
/// for what is neither old nor new `×` (`x`).
pub fn strip(cells: &[Cell], utf8: bool) -> String {
    let per = cells.len().div_ceil(WIDTH).max(1);
    cells
        .chunks(per)
        .map(|cells| {
            let cell = if cells.iter().all(|c| *c == cells[0]) { cells[0] } else { Cell::Mixed };
            match (cell, utf8) {
                (Cell::New, true) => '■',
                (Cell::Old, true) => '□',
                (Cell::Other, true) => '×',
                (Cell::Mixed, true) => '▨',
                (Cell::New, false) => '#',
                (Cell::Old, false) => '.',
                (Cell::Other, false) => 'x',
                (Cell::Mixed, false) => '%',
            }
        })
        .collect()
}

/// Does the environment's locale say UTF-8?
pub fn utf8_locale() -> bool {
    let value = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    is_utf8(["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(value).as_deref())
}

fn is_utf8(locale: Option<&str>) -> bool {
    locale.is_some_and(|l| {
        let l = l.to_ascii_lowercase();
        l.contains("utf-8") || l.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_show_old_new_and_neither() {
        let cells = [Cell::New, Cell::New, Cell::New, Cell::Old, Cell::Old, Cell::Other];
        assert_eq!(strip(&cells, true), "■■■□□×");
        assert_eq!(strip(&cells, false), "###..x");
        assert_eq!(strip(&[], true), "");
    }

    #[test]
    fn a_long_strip_is_shortened_and_says_where_signs_differ() {
        let mut cells = vec![Cell::New; 129];
        cells[4] = Cell::Old;
        let text = strip(&cells, false);
        assert_eq!(text.len(), 43);
        assert!(text.starts_with("#%###"), "{text}");
    }

    #[test]
    fn the_locale_decides() {
        assert!(is_utf8(Some("en_US.UTF-8")) && is_utf8(Some("C.utf8")));
        assert!(!is_utf8(Some("C")) && !is_utf8(None));
    }
}
