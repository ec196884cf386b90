//! From a recording and a state's name to a picture.

use super::choose::{self, BLOCKS, Chosen, Drawn, ends};
use super::shows::{State, blocks};
use super::{
    About, Bar, Bracket, Column, Fate, Flush, Kind, Moment, NoPicture, Picture, Row, Scene, Shows,
    tell,
};
use std::collections::BTreeSet;
use std::ops::Range;
use tornblk_model::crash::Request;
use tornblk_model::event::{Event, Seq};

/// Columns of a picture.
#[derive(Default)]
struct Timeline {
    columns: Vec<Column>,
    skipped: u64,
}

impl Scene<'_> {
    /// # Errors
    /// There is no such state, or nothing in it that could be drawn.
    pub fn draw(&self, about: &About) -> Result<Picture, NoPicture> {
        let mut states = vec![State::new(self.history, &about.state)?];
        // One that is of another crash point has another time.
        if let Some(name) = about.found.as_ref().filter(|name| **name != about.state)
            && let Ok(found) = State::new(self.history, name)
            && found.after == states[0].after
        {
            states.push(found);
        }
        let chosen = choose::writes(&states, about);
        if chosen.writes.is_empty() {
            return Err(NoPicture("no write of the recording is to blame".to_owned()));
        }
        let ids: Vec<Seq> = chosen.writes.iter().map(|w| w.request.id()).collect();
        for state in &mut states {
            state.look_at(&ids)?;
        }
        let told = &states[0];
        let flushes = choose::flushes(told, &chosen.writes);
        let timeline = self.timeline(told, about, &chosen.writes, &flushes);
        let rows = self.rows(&states, about, &chosen);
        let bars = self.bars(told, &chosen.writes, &timeline);
        let mut picture = Picture {
            what: about.what.clone(),
            profile: told.profile.to_string(),
            state: about.state.clone(),
            found: about.found.clone().filter(|_| states.len() > 1),
            after: told.after,
            lb_size: self.history.disk().lb_size,
            tear: told.tear,
            flushes: drawn_flushes(&flushes, &timeline, told.after),
            skipped: timeline.skipped,
            columns: timeline.columns,
            bars,
            rows,
            brackets: Vec::new(),
            left_out: chosen.left_out,
            told: Vec::new(),
        };
        picture.brackets = brackets(&picture, about);
        picture.told = tell::sentences(&picture);
        Ok(picture)
    }

    fn timeline(
        &self,
        state: &State<'_>,
        about: &About,
        writes: &[Drawn<'_>],
        flushes: &[&Request],
    ) -> Timeline {
        // What becomes visible at the event at which a request ends did so before that.
        let mut moments: Vec<(Seq, u8, Moment)> = Vec::new();
        for write in writes {
            let request = write.request.id();
            let (sent, end) = ends(write.request, state.after);
            moments.push((sent, 0, Moment::Sent(request)));
            if let Some((at, Some(ok))) = end {
                moments.push((at, 1, Moment::Answered { request, ok }));
            }
        }
        for request in flushes {
            let flush = request.id();
            let (sent, end) = ends(request, state.after);
            moments.push((sent, 0, Moment::FlushSent(flush)));
            if let Some((at, Some(ok))) = end {
                moments.push((at, 1, Moment::FlushAnswered { flush, ok }));
            }
        }
        let from = moments.iter().map(|(at, ..)| *at).min().unwrap_or(state.after);
        let marks = choose::marks(self.events, (from, state.after), about, self.subject);
        moments.extend(marks.into_iter().map(|(at, what)| (at, 2, what)));
        moments.sort_by_key(|(at, order, _)| (*at, *order));
        let mut columns: Vec<Column> = Vec::new();
        for (at, _, what) in moments {
            let before = columns.last().map(|column| column.at);
            let skipped = before.map_or(0, |before| self.between(before, at));
            columns.push(Column { at, what, skipped });
        }
        let skipped =
            columns.last().map_or(0, |last| self.between(last.at, Seq(state.after.0 + 1)));
        Timeline { columns, skipped }
    }

    /// Events after one and before another.
    fn between(&self, after: Seq, before: Seq) -> u64 {
        let from = self.events.partition_point(|(seq, _)| *seq <= after);
        let to = self.events.partition_point(|(seq, _)| *seq < before);
        let counts = |(_, event): &&(Seq, Event)| !matches!(event, Event::Visible { .. });
        self.events.get(from..to).unwrap_or_default().iter().filter(counts).count() as u64
    }

    fn bars(&self, state: &State<'_>, writes: &[Drawn<'_>], timeline: &Timeline) -> Vec<Bar> {
        let column = |wanted: &dyn Fn(&Moment) -> bool| {
            timeline.columns.iter().position(|column| wanted(&column.what))
        };
        let bar = |drawn: &Drawn<'_>| {
            let request = drawn.request;
            let write = request.id();
            let sent = column(&|what| *what == Moment::Sent(write)).unwrap_or(0);
            let answered = column(
                &|what| matches!(what, Moment::Answered { request, .. } if *request == write),
            );
            // One that a reset ended was never answered.
            let reset = ends(request, state.after).1.map(|(at, _)| {
                let after = timeline.columns.iter().position(|column| column.at >= at);
                after.unwrap_or(timeline.columns.len().saturating_sub(1))
            });
            let ranges = request.ranges();
            let (parts, survived) = state.parts(request);
            let own = blocks(self.history, request);
            Bar {
                write,
                kind: request.kind(),
                offset: ranges.first().map_or(0, |(offset, _)| *offset),
                len: ranges.iter().map(|(_, len)| len).sum(),
                from: sent,
                to: answered.or(reset),
                standing: state.standing(request),
                whole: state.is_whole(request),
                blamed: drawn.blamed,
                parts,
                survived,
                call: own
                    .first()
                    .and_then(|blocks| self.explain.call(write, blocks))
                    .map(|c| c.call),
            }
        };
        writes.iter().map(bar).collect()
    }

    fn rows(&self, states: &[State<'_>], about: &About, chosen: &Chosen<'_>) -> Vec<Row> {
        let lb = u64::from(self.history.disk().lb_size);
        let own: Vec<Vec<Range<u64>>> =
            chosen.writes.iter().map(|w| blocks(self.history, w.request)).collect();
        let mut looked: BTreeSet<u64> = BTreeSet::new();
        for range in chosen.focus.iter().chain(own.iter().flatten()) {
            looked.extend(range.clone().take(BLOCKS as usize));
        }
        let edges: Vec<u64> = about
            .place
            .iter()
            .flat_map(|place| [place.bytes.start / lb, place.bytes.end.div_ceil(lb)])
            .collect();
        let mut rows: Vec<Row> = Vec::new();
        for block in looked {
            let over: Vec<(usize, &Request)> = chosen
                .writes
                .iter()
                .enumerate()
                .filter(|(i, _)| own[*i].iter().any(|range| range.contains(&block)))
                .map(|(i, w)| (i, w.request))
                .collect();
            let mut requests: Vec<&Request> = over.iter().map(|(_, request)| *request).collect();
            requests.sort_by_key(|request| request.id());
            let told = &states[0];
            let pieces: Vec<(usize, Fate)> =
                over.iter().map(|(i, r)| (*i, told.fate(r, block, &requests))).collect();
            let shows = told.shows(block, &requests);
            let found = states.get(1).map(|found| found.shows(block, &requests).kind);
            match rows.last_mut() {
                Some(row)
                    if row.blocks.end == block
                        && !edges.contains(&block)
                        && row.pieces == pieces
                        && row.shows == shows =>
                {
                    row.blocks.end = block + 1;
                    add(&mut row.found, block, found);
                }
                _ => {
                    let blocks = block..block + 1;
                    let mut row = Row { blocks, whose: None, pieces, shows, found: Vec::new() };
                    add(&mut row.found, block, found);
                    rows.push(row);
                }
            }
        }
        for row in &mut rows {
            row.whose = self.whose(row, about, chosen);
        }
        rows
    }

    /// What the blocks of a row are called by who wrote them.
    fn whose(&self, row: &Row, about: &About, chosen: &Chosen<'_>) -> Option<String> {
        let lb = u64::from(self.history.disk().lb_size);
        let inside = |bytes: &Range<u64>| {
            bytes.start <= row.blocks.start * lb && row.blocks.end * lb <= bytes.end
        };
        if let Some(place) = about.place.as_ref().filter(|place| inside(&place.bytes)) {
            return Some(place.name.clone());
        }
        // The newest write knows best.
        row.pieces.iter().rev().find_map(|(i, _)| {
            let call = self.explain.call(chosen.writes[*i].request.id(), &row.blocks)?;
            Some(format!("{} {}..{}", call.path, call.offset, call.offset + call.len))
        })
    }
}

/// One block more.
fn add(found: &mut Vec<(Range<u64>, Kind)>, block: u64, kind: Option<Kind>) {
    let Some(kind) = kind else { return };
    match found.last_mut() {
        Some((blocks, last)) if *last == kind => blocks.end = block + 1,
        _ => found.push((block..block + 1, kind)),
    }
}

fn drawn_flushes(flushes: &[&Request], timeline: &Timeline, after: Seq) -> Vec<Flush> {
    let at = |wanted: &dyn Fn(&Moment) -> bool| {
        timeline.columns.iter().position(|column| wanted(&column.what))
    };
    let one = |request: &&Request| {
        let id = request.id();
        let to = at(&|what| matches!(what, Moment::FlushAnswered { flush, .. } if *flush == id));
        Some(Flush {
            id,
            from: at(&|what| *what == Moment::FlushSent(id))?,
            to,
            ok: matches!(ends(request, after).1, Some((_, Some(true)))),
        })
    };
    flushes.iter().filter_map(one).collect()
}

/// What is one thing to whoever wrote it, and what came of it; and each write that is torn beside that.
fn brackets(picture: &Picture, about: &About) -> Vec<Bracket> {
    let lb = u64::from(picture.lb_size);
    let mut out = Vec::new();
    if let Some(place) = &about.place {
        let own = place.bytes.start / lb..place.bytes.end.div_ceil(lb);
        let inside = |row: &Row| own.start <= row.blocks.start && row.blocks.end <= own.end;
        if let Some(rows) = run(&picture.rows, inside) {
            let text =
                format!("{}: {}", place.verdict.to_uppercase(), mix(&picture.rows[rows.clone()]));
            out.push(Bracket { rows, text, bad: true });
        }
    }
    for (i, bar) in picture.bars.iter().enumerate().filter(|(_, bar)| bar.is_torn()) {
        let has = |row: &Row| row.pieces.iter().any(|(own, _)| *own == i);
        let Some(rows) = run(&picture.rows, has) else { continue };
        let apart = |other: &Bracket| other.rows.end <= rows.start || rows.end <= other.rows.start;
        if out.iter().all(apart) {
            let text =
                format!("TORN: write {}, {} of {} parts there", bar.write, bar.survived, bar.parts);
            out.push(Bracket { rows, text, bad: bar.blamed });
        }
    }
    out
}

/// From the first row to the last for which it holds.
fn run(rows: &[Row], holds: impl Fn(&Row) -> bool) -> Option<Range<usize>> {
    let first = rows.iter().position(&holds)?;
    let last = rows.iter().rposition(&holds)?;
    Some(first..last + 1)
}

/// Blocks of each kind, in the order in which the kinds come.
pub(super) fn tally(rows: &[Row]) -> Vec<(Kind, u64)> {
    let mut counts: Vec<(Kind, u64)> = Vec::new();
    for row in rows {
        let n = row.blocks.end - row.blocks.start;
        match counts.iter_mut().find(|(kind, _)| *kind == row.shows.kind) {
            Some((_, known)) => *known += n,
            None => counts.push((row.shows.kind, n)),
        }
    }
    counts
}

/// "12 blocks old, 20 new"
fn mix(rows: &[Row]) -> String {
    let counts = tally(rows);
    let all: u64 = counts.iter().map(|(_, n)| n).sum();
    match counts.as_slice() {
        [(kind, n)] => format!("all {n} blocks {}", kind.word()),
        some => {
            let some: Vec<String> =
                some.iter().map(|(kind, n)| format!("{n} {}", kind.word())).collect();
            format!("of {all} blocks {}", some.join(", "))
        }
    }
}

impl Shows {
    /// "still write 151; write 167 is missing"
    pub fn words(&self) -> String {
        let of = match (self.kind, self.of) {
            (Kind::Foreign, Some(of)) => format!("content of write {of}, changed or misplaced"),
            (Kind::Foreign, None) => "what nobody wrote".to_owned(),
            (_, Some(of)) => format!("write {of}"),
            (_, None) => "what was there before".to_owned(),
        };
        match self.missing {
            Some(missing) => format!("still {of}; write {missing} is missing"),
            None => of,
        }
    }
}
