//! A picture as SVG: one for a bug report, which needs nothing but itself, or within a page that has the
//! styles and patterns already.

use super::build::tally;
use super::{Bar, Fate, Kind, Moment, Picture, Row, Standing, tell};
use maud::{Markup, PreEscaped, html};
use std::ops::Range;

/// Colours and lines; of pages, too.
pub(crate) const STYLE: &str = include_str!("picture.css");

const LEFT: i32 = 178;
const SWATCH: i32 = 52;
const WORDS: i32 = 310;
/// A picture is no wider, where that can be.
const WIDTH: i32 = 1240;
/// Of a line of text.
const LINE: i32 = 16;
const LANE: i32 = 22;
const HEAD: i32 = 3 * LANE + 22;
const ROW: i32 = 26;
/// A tear unit, where each is drawn.
const UNIT: i32 = 7;
/// Tear units of a row that are drawn one by one.
const DRAWN: u64 = 20;
/// Rows that are drawn; the rest is counted.
pub(super) const ROWS: usize = 24;
/// Between rows that are not next to each other.
const APART: i32 = 12;
/// About the width of a letter.
const LETTER: i32 = 6;

/// Where everything is.
struct Layout {
    /// Of each column, its middle.
    columns: Vec<i32>,
    column: i32,
    cut: i32,
    /// Of each row that is drawn: top and height.
    rows: Vec<(i32, i32)>,
    /// Of each bar: which of the lanes of its rows.
    lanes: Vec<i32>,
    /// Of each row.
    of_lanes: Vec<i32>,
    bottom: i32,
    width: i32,
    swatches: i32,
}

impl Layout {
    fn new(picture: &Picture, top: i32) -> Layout {
        let right = 14 + if picture.found.is_some() { 2 } else { 1 } * (SWATCH + 8) + WORDS;
        let gaps = picture.columns.iter().filter(|c| c.skipped > 0).count() as i32;
        let room = WIDTH - LEFT - right - 60 - gaps * 26;
        let column = (room / picture.columns.len().max(1) as i32).clamp(56, 92);
        let mut x = LEFT + 16;
        let mut columns = Vec::new();
        for one in &picture.columns {
            x += if one.skipped > 0 { 26 } else { 0 };
            columns.push(x + column / 2);
            x += column;
        }
        // Room to say that something was not flushed.
        let volatile = picture.bars.iter().any(|bar| bar.standing == Standing::Volatile);
        let cut = x + if volatile { 44 } else { 14 };
        let lanes = lanes(picture);
        let lane_of = |row: &Row| row.pieces.iter().map(|(i, _)| lanes[*i] + 1).max().unwrap_or(1);
        let mut y = top + HEAD;
        let mut rows = Vec::new();
        let mut of_lanes = Vec::new();
        let drawn = &picture.rows[..picture.rows.len().min(ROWS)];
        for (i, row) in drawn.iter().enumerate() {
            if i > 0 && drawn[i - 1].blocks.end != row.blocks.start {
                y += APART;
            }
            let units = tears(&row.blocks, picture.tear).len() as u64 + 1;
            let lanes = lane_of(row);
            // Two lines of text, where there is something new to say.
            let named = row.whose.is_some() && (i == 0 || drawn[i - 1].whose != row.whose);
            let least = if named { 2 * LINE + 4 } else { ROW };
            let height = (units.min(DRAWN) as i32 * UNIT).max(lanes * LANE).max(least);
            of_lanes.push(lanes);
            rows.push((y, height));
            y += height;
            y += picture.brackets.iter().filter(|b| last(b, drawn.len()) == i).count() as i32
                * (LINE + 8);
        }
        if picture.rows.len() > ROWS {
            y += ROW;
        }
        let swatches = if picture.found.is_some() { 2 } else { 1 };
        let width = cut + 14 + swatches * (SWATCH + 8) + WORDS;
        Layout { columns, column, cut, rows, lanes, of_lanes, bottom: y, width, swatches }
    }

    fn swatch(&self, n: i32) -> i32 {
        self.cut + 14 + n * (SWATCH + 8)
    }

    fn words(&self) -> i32 {
        self.swatch(self.swatches) + 6
    }

    /// Left and right end of a bar.
    fn span(&self, bar: &Bar) -> (i32, i32) {
        let from = self.columns.get(bar.from).copied().unwrap_or(LEFT);
        let to = bar.to.and_then(|to| self.columns.get(to)).copied().unwrap_or(self.cut);
        (from, to.max(from + 8))
    }
}

/// The blocks before which a write could be cut.
fn tears(blocks: &Range<u64>, tear: u64) -> Vec<u64> {
    let first = (blocks.start / tear + 1) * tear;
    // Of more than that nothing could be seen.
    (first..blocks.end).step_by(tear as usize).take(2 * DRAWN as usize).collect()
}

/// The last row of a bracket that is drawn.
fn last(bracket: &super::Bracket, drawn: usize) -> usize {
    (bracket.rows.end.min(drawn)).saturating_sub(1)
}

/// Bars that are there at the same time over the same blocks lie beside one another.
pub(super) fn lanes(picture: &Picture) -> Vec<i32> {
    let together = |a: usize, b: usize| {
        let has = |row: &Row, i: usize| row.pieces.iter().any(|(own, _)| *own == i);
        picture.rows.iter().any(|row| has(row, a) && has(row, b))
    };
    let span = |bar: &Bar| (bar.from, bar.to.unwrap_or(usize::MAX));
    let mut lanes: Vec<i32> = Vec::new();
    for (i, bar) in picture.bars.iter().enumerate() {
        let (from, to) = span(bar);
        let meets = |k: &usize| {
            let (other_from, other_to) = span(&picture.bars[*k]);
            from < other_to && other_from < to && together(i, *k)
        };
        let taken: Vec<i32> = (0..i).filter(meets).map(|k| lanes[k]).collect();
        lanes.push((0..).find(|lane| !taken.contains(lane)).unwrap_or(0));
    }
    lanes
}

/// One file, which needs nothing else; always light.
pub fn file(picture: &Picture) -> String {
    let top = 34 + LINE * 2;
    let told = wrap(&picture.told, 150);
    let layout = Layout::new(picture, top);
    let foot = layout.bottom + 28;
    let height = foot + LINE * (told.len() as i32 + 1) + 12;
    let width = layout.width.max(900);
    let name = clipped(&picture.state, (width / LETTER - 12).max(20) as usize);
    let svg = html! {
        svg class="picture alone" xmlns="http://www.w3.org/2000/svg" role="img"
            viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) {
            title { (picture.what) }
            desc { (picture.told.join(" ")) }
            style { (PreEscaped(STYLE)) }
            (patterns())
            rect class="paper" width=(width) height=(height) {}
            text class="headline" x="16" y="28" { (clipped(&picture.what, (width / 9) as usize)) }
            text class="small" x="16" y="50" { "disk " (picture.profile) ", state " (name) }
            (drawn(picture, &layout, top))
            @for (i, line) in told.iter().enumerate() {
                text x="16" y=(foot + LINE * i as i32) { (line) }
            }
        }
    };
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", svg.into_string())
}

/// Within a page, which has [`STYLE`] and [`patterns`].
pub(crate) fn within(picture: &Picture, label: &str) -> Markup {
    let layout = Layout::new(picture, 4);
    let (width, height) = (layout.width, layout.bottom + 12);
    html! {
        svg class="picture" xmlns="http://www.w3.org/2000/svg" role="img"
            viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) {
            title { (label) }
            desc { (picture.told.join(" ")) }
            (drawn(picture, &layout, 4))
        }
    }
}

/// Once a page.
pub(crate) fn patterns() -> Markup {
    html! {
        defs {
            pattern id="p-old" width="6" height="6" patternUnits="userSpaceOnUse" {
                rect class="bg-old" width="6" height="6" {}
                circle class="fg-old" cx="2" cy="2" r="1" {}
            }
            pattern id="p-lost" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                rect class="bg-lost" width="8" height="8" {}
                rect class="fg-lost" width="3" height="8" {}
            }
            pattern id="p-broken" width="8" height="8" patternUnits="userSpaceOnUse" {
                rect class="bg-broken" width="8" height="8" {}
                path class="fg-broken" d="M0 0L8 8M8 0L0 8" {}
            }
            pattern id="p-foreign" width="6" height="6" patternUnits="userSpaceOnUse" {
                rect class="bg-foreign" width="6" height="6" {}
                rect class="fg-foreign" width="2" height="6" {}
            }
            pattern id="p-covered" width="6" height="6" patternUnits="userSpaceOnUse" {
                rect class="bg-covered" width="6" height="6" {}
                rect class="fg-covered" width="6" height="1" y="3" {}
            }
        }
    }
}

fn drawn(picture: &Picture, layout: &Layout, top: i32) -> Markup {
    let end = layout.bottom - if picture.rows.len() > ROWS { ROW } else { 0 };
    html! {
        (head(picture, layout, top))
        @for flush in &picture.flushes {
            @let from = layout.columns.get(flush.from).copied().unwrap_or(LEFT);
            @let to = flush.to.and_then(|to| layout.columns.get(to)).copied().unwrap_or(layout.cut);
            rect class={ "flush" @if !flush.ok { " open" } } x=(from) y=(top + HEAD - 6)
                width=((to - from).max(4)) height=(end - top - HEAD + 10) {}
        }
        @for (x, column) in layout.columns.iter().zip(&picture.columns) {
            line class={ "event" @if matches!(column.what, Moment::Mark(_)) { " mark" } }
                x1=(x) x2=(x) y1=(top + lane(&column.what) * LANE + LINE + 2) y2=(end) {}
            @if column.skipped > 0 {
                text class="skipped" x=(x - layout.column / 2 - 13) y=(top + HEAD - 10) { "…" }
            }
        }
        @for (i, (row, place)) in picture.rows.iter().zip(&layout.rows).enumerate() {
            (one_row(picture, layout, i, row, *place))
        }
        @if picture.rows.len() > ROWS {
            text class="small" x="8" y=(layout.bottom - 8) { (rest(&picture.rows[ROWS..])) }
        }
        line class="cut" x1=(layout.cut) x2=(layout.cut) y1=(top) y2=(layout.bottom + 6) {}
        text class="cut" x=(layout.cut + 12) y=(top + LINE - 2) { "POWER CUT" }
        @for bracket in &picture.brackets {
            (one_bracket(bracket, layout))
        }
    }
}

fn head(picture: &Picture, layout: &Layout, top: i32) -> Markup {
    let y = |lane: i32| top + lane * LANE + LINE - 2;
    let most = |i: usize| {
        let own = &picture.columns[i].what;
        let x = layout.columns[i];
        // Up to the next label on its line.
        let near = layout.columns.iter().zip(&picture.columns).enumerate();
        let near = near.filter(|(k, (_, c))| *k != i && lane(&c.what) == lane(own));
        let near = near.map(|(_, (other, _))| (other - x).abs()).min().unwrap_or(i32::MAX);
        let room = near.min(2 * (layout.cut - x)).min(2 * (x - LEFT + 20)).min(240);
        (room / LETTER - 1).max(6) as usize
    };
    html! {
        @for (i, name) in ["program", "sent to the disk", "disk answered"].iter().enumerate() {
            text class="lane" x=(LEFT - 10) y=(y(i as i32)) { (name) }
        }
        text class="lane" x=(LEFT - 10) y=(top + HEAD - 10) { "event, time \u{2192}" }
        @for (i, (x, column)) in layout.columns.iter().zip(&picture.columns).enumerate() {
            g {
                title { (full(&column.what)) ", event " (column.at) }
                text class={ "event " (class(&column.what)) } x=(x) y=(y(lane(&column.what))) {
                    (short(&column.what, most(i)))
                }
            }
            text class="number" x=(x) y=(top + HEAD - 10) { (column.at) }
        }
        @let (first, second) = (layout.swatch(0), layout.swatch(1));
        text class="after" x=(first) y=(y(1)) { "what the disk holds after it" }
        @if picture.found.is_some() {
            text class="number left" x=(first) y=(top + HEAD - 10) { "shrunk" }
            text class="number left" x=(second) y=(top + HEAD - 10) { "as found" }
        }
    }
}

fn one_row(
    picture: &Picture,
    layout: &Layout,
    i: usize,
    row: &Row,
    (y, height): (i32, i32),
) -> Markup {
    let n = row.blocks.end - row.blocks.start;
    let lanes = layout.of_lanes[i];
    let middle = y + height / 2 + 4;
    let blocks = if n == 1 { "block" } else { "blocks" };
    let second = row.whose.as_deref().map(|whose| clipped(whose, 32));
    // The same as the row above says nothing new.
    let repeated = i > 0 && picture.rows[i - 1].whose == row.whose;
    let second = second.filter(|_| !repeated && height >= 2 * LINE - 4);
    let at = if second.is_some() { middle - LINE / 2 } else { middle };
    html! {
        g class="row" {
            title {
                (blocks) " " (Picture::span(&row.blocks)) ", bytes "
                (row.blocks.start * u64::from(picture.lb_size)) " to "
                (row.blocks.end * u64::from(picture.lb_size))
                @if let Some(whose) = &row.whose { ", " (whose) }
                ": " (row.shows.kind.word()) ", " (row.shows.words())
            }
            rect class="line" x="0" y=(y) width=(layout.width) height=(height) {}
            text class="blocks" x=(LEFT - 10) y=(at) {
                (blocks) " " (Picture::span(&row.blocks))
                @if n > 1 { " (" (n) ")" }
            }
            @if let Some(whose) = second {
                text class="whose" x=(LEFT - 10) y=(at + LINE - 1) { (whose) }
            }
            @for (bar, fate) in &row.pieces {
                (piece(picture, layout, i, *bar, *fate, (y, height / lanes.max(1))))
            }
            (swatch(layout.swatch(0), (y, height), row.shows.kind, picture, row))
            (as_found(layout.swatch(1), (y, height), picture, row))
            text class={ "shows " (kind_class(row.shows.kind)) } x=(layout.words()) y=(middle) {
                tspan class="kind" { (row.shows.kind.word().to_uppercase()) ":" }
                tspan { " " (row.shows.words()) }
            }
        }
    }
}

fn piece(
    picture: &Picture,
    layout: &Layout,
    row: usize,
    i: usize,
    fate: Fate,
    (y, height): (i32, i32),
) -> Markup {
    let bar = &picture.bars[i];
    let (from, to) = layout.span(bar);
    let y = y + layout.lanes[i] * height;
    let has = |r: &Row| r.pieces.iter().any(|(own, _)| *own == i);
    let first = picture.rows.iter().position(has) == Some(row);
    // What is still there because something newer is not is no success.
    let old = picture.rows[row].shows.missing.is_some();
    let word = match fate {
        Fate::There if old => "still there",
        Fate::There => "survived",
        Fate::Lost => "lost",
        Fate::Covered => "replaced",
    };
    let name = if first { format!("write {}: {word}", bar.write) } else { word.to_owned() };
    let fits = |text: &str| text.len() as i32 * LETTER + 8 <= to - from;
    let text = [name.as_str(), word].into_iter().find(|text| fits(text)).unwrap_or_default();
    let class = match fate {
        Fate::There if old => "old",
        Fate::There => "there",
        Fate::Lost => "lost",
        Fate::Covered => "covered",
    };
    let cached = cached(picture, layout, bar).filter(|end| *end > to);
    let middle = y + height / 2 + 4;
    html! {
        g class={ "piece " (class) @if bar.blamed { " blamed" } } {
            title { (tell::name(bar)) ", " (standing(bar)) ": " (word) " here" }
            @if let Some(end) = cached {
                line class="cached" x1=(to) x2=(end) y1=(middle - 4) y2=(middle - 4) {}
                @let words = if bar.standing == Standing::Volatile { "not flushed" } else { "" };
                @if first && !words.is_empty() && words.len() as i32 * LETTER + 8 <= end - to {
                    text class="cached" x=((to + end) / 2) y=(middle - 9) { (words) }
                }
            }
            rect x=(from) y=(y + 2) width=(to - from) height=(height - 4) {}
            (ticks(picture, row, (from, to), (y + 2, height - 4)))
            @if bar.to.is_some() {
                line class="end" x1=(to) x2=(to) y1=(y + 1) y2=(y + height - 1) {}
            }
            @if !text.is_empty() {
                @let half = text.len() as i32 * LETTER / 2 + 4;
                @let at = (from + to) / 2;
                rect class="label" x=(at - half) y=(middle - 12) width=(2 * half) height="16" rx="3" {}
                text x=(at) y=(middle) { (text) }
            }
        }
    }
}

fn standing(bar: &Bar) -> String {
    match bar.standing {
        Standing::InFlight => "in flight at the cut".to_owned(),
        Standing::Volatile => "answered, not flushed".to_owned(),
        Standing::Failed => "failed".to_owned(),
        Standing::Stable(Some(flush)) => format!("stable by flush {flush}"),
        Standing::Stable(None) => "stable when answered".to_owned(),
    }
}

/// How far what was answered lay in the disk's cache: up to the flush that made it stable, or to the cut.
fn cached(picture: &Picture, layout: &Layout, bar: &Bar) -> Option<i32> {
    match bar.standing {
        Standing::Volatile => Some(layout.cut),
        Standing::Stable(Some(id)) => {
            let flush = picture.flushes.iter().find(|flush| flush.id == id)?;
            layout.columns.get(flush.to?).copied()
        }
        _ => None,
    }
}

/// A line wherever the disk may tear.
fn ticks(picture: &Picture, row: usize, (from, to): (i32, i32), (y, height): (i32, i32)) -> Markup {
    let blocks = &picture.rows[row].blocks;
    let all = tears(blocks, picture.tear);
    let drawn = if all.len() < DRAWN as usize { all } else { Vec::new() };
    let n = blocks.end - blocks.start;
    html! {
        @for at in drawn.iter().map(|at| y + (height as u64 * (at - blocks.start) / n) as i32) {
            line class="tear" x1=(from) x2=(to) y1=(at) y2=(at) {}
        }
    }
}

fn swatch(x: i32, (y, height): (i32, i32), kind: Kind, picture: &Picture, row: &Row) -> Markup {
    let half = 12;
    let middle = y + height / 2;
    let number = picture.rows.iter().position(|own| own.blocks == row.blocks).unwrap_or(0);
    html! {
        rect class={ "swatch " (kind_class(kind)) } x=(x) y=(y + 1) width=(SWATCH) height=(height - 2) {}
        (ticks(picture, number, (x, x + SWATCH), (y + 1, height - 2)))
        rect class="label" x=(x + SWATCH / 2 - half) y=(middle - 9) width=(2 * half) height="18" rx="3" {}
        text class="letter" x=(x + SWATCH / 2) y=(middle + 5) { (kind.letter()) }
    }
}

fn one_bracket(bracket: &super::Bracket, layout: &Layout) -> Markup {
    let end = last(bracket, layout.rows.len());
    let (Some((top, _)), Some((y, height))) =
        (layout.rows.get(bracket.rows.start), layout.rows.get(end))
    else {
        return html! {};
    };
    let x = layout.words() - 6;
    let bottom = y + height;
    html! {
        g class={ "bracket" @if bracket.bad { " bad" } } {
            path d={ "M" (x - 3) " " (top + 2) "H" (x) "V" (bottom + 12) "H" (x + 8) } {}
            text x=(x + 12) y=(bottom + 16) { (bracket.text) }
        }
    }
}

/// The runs of a row, as they were found.
fn as_found(x: i32, (y, height): (i32, i32), picture: &Picture, row: &Row) -> Markup {
    let n = row.blocks.end - row.blocks.start;
    let at = |block: u64| y + 1 + ((height - 2) as u64 * (block - row.blocks.start) / n) as i32;
    html! {
        @match row.found.as_slice() {
            [] => {}
            [(_, kind)] => (swatch(x, (y, height), *kind, picture, row)),
            runs => {
                @for (blocks, kind) in runs {
                    @let (from, to) = (at(blocks.start), at(blocks.end));
                    rect class={ "swatch " (kind_class(*kind)) } x=(x) y=(from) width=(SWATCH)
                        height=((to - from).max(1)) {
                        title { "blocks " (Picture::span(blocks)) ": " (kind.word()) }
                    }
                    @if to - from >= LINE {
                        text class="letter on" x=(x + SWATCH / 2) y=((from + to) / 2 + 5) {
                            (kind.letter())
                        }
                    }
                }
            }
        }
    }
}

/// What stands for the rows that are not drawn.
pub(super) fn rest(rows: &[Row]) -> String {
    let counts = tally(rows);
    let counts: Vec<String> =
        counts.iter().map(|(kind, n)| format!("{n} {}", kind.word())).collect();
    format!("... and {} runs of blocks more: {}", rows.len(), counts.join(", "))
}

fn lane(what: &Moment) -> i32 {
    match what {
        Moment::Mark(_) => 0,
        Moment::Sent(_) | Moment::FlushSent(_) | Moment::Reset(_) => 1,
        Moment::Answered { .. } | Moment::FlushAnswered { .. } => 2,
    }
}

fn class(what: &Moment) -> &'static str {
    match what {
        Moment::Mark(_) => "mark",
        Moment::FlushSent(_) | Moment::FlushAnswered { .. } => "of-flush",
        Moment::Reset(_) => "reset",
        Moment::Sent(_) | Moment::Answered { .. } => "of-write",
    }
}

pub(super) fn label(what: &Moment) -> String {
    match what {
        Moment::Sent(id) | Moment::Answered { request: id, ok: true } => format!("write {id}"),
        Moment::Answered { request, ok: false } => format!("{request} failed"),
        Moment::FlushSent(id) | Moment::FlushAnswered { flush: id, ok: true } => {
            format!("FLUSH {id}")
        }
        Moment::FlushAnswered { flush, ok: false } => format!("{flush} failed"),
        Moment::Mark(text) | Moment::Reset(text) => text.clone(),
    }
}

/// In so many letters, by its number alone where there is no room for more.
fn short(what: &Moment, most: usize) -> String {
    let whole = label(what);
    match what {
        _ if whole.chars().count() <= most => whole,
        Moment::Sent(id) | Moment::Answered { request: id, ok: true } => id.to_string(),
        Moment::FlushSent(id) | Moment::FlushAnswered { flush: id, ok: true } => format!("F{id}"),
        _ => clipped(&whole, most),
    }
}

/// In words.
pub(super) fn full(what: &Moment) -> String {
    match what {
        Moment::Sent(id) => format!("write {id} is sent"),
        Moment::Answered { request, ok: true } => format!("write {request} is answered"),
        Moment::Answered { request, ok: false } => format!("write {request} fails"),
        Moment::FlushSent(id) => format!("flush {id} is sent"),
        Moment::FlushAnswered { flush, ok: true } => format!("flush {flush} is answered"),
        Moment::FlushAnswered { flush, ok: false } => format!("flush {flush} fails"),
        Moment::Mark(text) | Moment::Reset(text) => text.clone(),
    }
}

fn kind_class(kind: Kind) -> &'static str {
    match kind {
        Kind::New => "k-new",
        Kind::Old => "k-old",
        Kind::Lost => "k-lost",
        Kind::Broken => "k-broken",
        Kind::Foreign => "k-foreign",
        Kind::Before => "k-before",
    }
}

pub(super) fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => {
            let short: String = text.chars().take(most.saturating_sub(1)).collect();
            format!("{short}\u{2026}")
        }
        None => text.to_owned(),
    }
}

/// Lines of at most so many letters.
pub(super) fn wrap(sentences: &[String], most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for sentence in sentences {
        let mut line = String::new();
        for word in sentence.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > most {
                lines.push(std::mem::take(&mut line));
                line.push_str("  ");
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}
