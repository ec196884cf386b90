//! A picture as text, at most [`WIDTH`] columns wide.

use super::svg::{ROWS, clipped, full, lanes, rest, wrap};
use super::{Bar, Fate, Kind, Moment, Picture, Row, Standing, tell};

pub const WIDTH: usize = 100;

/// Before the time begins.
const LEFT: usize = 20;

/// The signs that it is drawn with.
struct Signs {
    begin: char,
    end: char,
    there: char,
    lost: char,
    covered: char,
    flush: char,
    cut: char,
    skipped: char,
}

const UTF8: Signs = Signs {
    begin: '├',
    end: '┤',
    there: '█',
    lost: '░',
    covered: '▒',
    flush: '═',
    cut: '┃',
    skipped: '⋯',
};

const ASCII: Signs = Signs {
    begin: '[',
    end: ']',
    there: '#',
    lost: '.',
    covered: '=',
    flush: '~',
    cut: '|',
    skipped: ':',
};

impl Signs {
    fn of(&self, fate: Fate) -> char {
        match fate {
            Fate::There => self.there,
            Fate::Lost => self.lost,
            Fate::Covered => self.covered,
        }
    }
}

/// As lines that end with one.
pub fn text(picture: &Picture, utf8: bool) -> String {
    let signs = if utf8 { &UTF8 } else { &ASCII };
    let mut out: Vec<String> = Vec::new();
    out.extend(wrap(std::slice::from_ref(&picture.what), WIDTH));
    out.push(clipped(&format!("disk {}, state {}", picture.profile, picture.state), WIDTH));
    out.push(String::new());
    let step = if picture.columns.len() > 11 { 2 } else { 3 };
    let draw = Draw { picture, signs, lanes: lanes(picture), step };
    draw.head(&mut out);
    let drawn = &picture.rows[..picture.rows.len().min(ROWS)];
    for (i, row) in drawn.iter().enumerate() {
        if i > 0 && drawn[i - 1].blocks.end != row.blocks.start {
            out.push(draw.line("", Vec::new(), String::new()));
        }
        draw.row(row, &mut out);
        for bracket in &picture.brackets {
            if bracket.rows.end.min(drawn.len()) == i + 1 {
                out.push(draw.line("", Vec::new(), format!("  ^ {}", bracket.text)));
            }
        }
    }
    if picture.rows.len() > ROWS {
        out.push(format!("  {}", rest(&picture.rows[ROWS..])));
    }
    draw.what_happened(&mut out);
    out.push(String::new());
    out.extend(wrap(&picture.told, WIDTH));
    let mut text = String::new();
    for line in out {
        let line = if utf8 { line } else { line.chars().map(ascii).collect() };
        text.push_str(clipped(&line, WIDTH).trim_end());
        text.push('\n');
    }
    if utf8 { text } else { text.replace('\u{2026}', ".") }
}

/// What stands in names and marks, too.
fn ascii(c: char) -> char {
    match c {
        '\u{2026}' => '.',
        '\u{201c}' | '\u{201d}' => '"',
        c if c.is_ascii() => c,
        _ => '?',
    }
}

struct Draw<'a> {
    picture: &'a Picture,
    signs: &'a Signs,
    lanes: Vec<i32>,
    /// Of a column.
    step: usize,
}

impl Draw<'_> {
    /// Where a column is, in the time's part of a line.
    fn at(&self, column: usize) -> usize {
        column * self.step + 1
    }

    fn cut(&self) -> usize {
        self.at(self.picture.columns.len())
    }

    /// A line: what it is about, the time, and what is behind the cut.
    fn line(&self, left: &str, bars: Vec<(usize, usize, String)>, after: String) -> String {
        let mut time: Vec<char> = vec![' '; self.cut()];
        for (from, to, text) in bars {
            for (place, sign) in time[from..to.min(self.cut())].iter_mut().zip(text.chars()) {
                *place = sign;
            }
        }
        let time: String = time.into_iter().collect();
        format!("{left:>width$} {time}{}{after}", self.signs.cut, width = LEFT - 1)
    }

    /// `text` in the middle of a bar.
    fn bar(
        &self,
        from: usize,
        to: Option<usize>,
        fill: char,
        text: &str,
    ) -> (usize, usize, String) {
        let start = self.at(from);
        let end = to.map_or(self.cut(), |to| (self.at(to) + 1).max(start + 2));
        let mut signs: Vec<char> = vec![fill; end - start];
        signs[0] = self.signs.begin;
        if to.is_some() {
            signs[end - start - 1] = self.signs.end;
        }
        let room = signs.len();
        if text.len() + 2 <= room {
            let at = (room - text.len()) / 2;
            drop(signs.splice(at..at + text.len(), text.chars()));
        }
        (start, end, signs.into_iter().collect())
    }

    fn head(&self, out: &mut Vec<String>) {
        let letters = self
            .picture
            .columns
            .iter()
            .enumerate()
            .flat_map(|(i, column)| {
                let skipped = (column.skipped > 0)
                    .then(|| (self.at(i) - 1, self.at(i), self.signs.skipped.to_string()));
                [Some((self.at(i), self.at(i) + 1, letter(i))), skipped]
            })
            .flatten()
            .collect();
        out.push(self.line("time, left to right", letters, " POWER CUT; the disk then:".into()));
        if !self.picture.flushes.is_empty() {
            let flushes = self.picture.flushes.iter();
            let flushes = flushes
                .map(|f| self.bar(f.from, f.to, self.signs.flush, &f.id.to_string()))
                .collect();
            out.push(self.line("FLUSH", flushes, String::new()));
        }
    }

    fn row(&self, row: &Row, out: &mut Vec<String>) {
        let n = row.blocks.end - row.blocks.start;
        let name = if n == 1 { "block" } else { "blocks" };
        let left = format!("{name} {}", Picture::span(&row.blocks));
        let count = row.pieces.iter().map(|(i, _)| self.lanes[*i]).max().unwrap_or(0);
        for lane in 0..=count {
            let own = row.pieces.iter().filter(|(i, _)| self.lanes[*i] == lane);
            let bars = own
                .map(|(i, fate)| {
                    let Bar { write, from, to, .. } = &self.picture.bars[*i];
                    self.bar(*from, *to, self.signs.of(*fate), &write.to_string())
                })
                .collect();
            let (left, after) = match lane {
                0 => (left.as_str(), self.after(row)),
                _ => ("", String::new()),
            };
            out.push(self.line(left, bars, after));
        }
    }

    fn after(&self, row: &Row) -> String {
        let sign = match row.shows.kind {
            Kind::New => self.signs.there,
            Kind::Before => ' ',
            _ => self.signs.lost,
        };
        let shows = &row.shows;
        let of = match (shows.kind, shows.of) {
            (Kind::Foreign, _) => shows.words(),
            (_, Some(of)) if shows.missing.is_some() => format!("still write {of}"),
            (_, Some(of)) => format!("write {of}"),
            (_, None) => "as before".to_owned(),
        };
        let missing = shows.missing.map(|id| format!("; {id} is missing")).unwrap_or_default();
        format!("{sign}{sign} {} {}: {of}{missing}", shows.kind.letter(), shows.kind.word())
    }

    fn what_happened(&self, out: &mut Vec<String>) {
        out.push(String::new());
        for (i, column) in self.picture.columns.iter().enumerate() {
            let bar = match &column.what {
                Moment::Sent(id) => self.picture.bar(*id),
                _ => None,
            };
            let more = bar.map(more).unwrap_or_default();
            let line =
                format!("  {}  event {}: {}{more}", letter(i), column.at, full(&column.what));
            out.push(clipped(&line, WIDTH));
        }
        out.push(format!(
            "  {}  the power is cut after event {}",
            self.signs.cut, self.picture.after
        ));
        let (there, lost, covered) = (self.signs.there, self.signs.lost, self.signs.covered);
        out.push(format!("  ({there} survived, {lost} lost, {covered} overwritten)"));
    }
}

/// What a write is, beside its number.
fn more(bar: &Bar) -> String {
    let standing = match bar.standing {
        Standing::InFlight => ", in flight at the cut".to_owned(),
        Standing::Volatile => ", answered, not flushed".to_owned(),
        Standing::Failed => ", failed".to_owned(),
        Standing::Stable(Some(flush)) => format!(", stable by flush {flush}"),
        Standing::Stable(None) => ", stable when answered".to_owned(),
    };
    let call = bar.call.as_ref().map(|call| format!(", {call}")).unwrap_or_default();
    format!(", {} at byte {}{standing}{call}", tell::size(bar.len), bar.offset)
}

/// a, b, ... z, A, ...
fn letter(i: usize) -> String {
    let letters = ('a'..='z').chain('A'..='Z');
    letters.cycle().nth(i).unwrap_or('?').to_string()
}
