//! How a page looks.

use super::{Answer, Fact, Page, Shown, Table, Tone};
use crate::oracle::Cell;
use crate::report::picture::{self, Picture, svg};
use crate::report::strip;
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

impl Page {
    /// As HTML that is XML, too.
    pub fn render(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" xmlns="http://www.w3.org/1999/xhtml" {
                head {
                    (PreEscaped("<meta charset=\"utf-8\"/>"))
                    (PreEscaped(
                        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>"
                    ))
                    (PreEscaped("<meta name=\"color-scheme\" content=\"light dark\"/>"))
                    // Nothing is fetched, whatever stands in it.
                    (PreEscaped(
                        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
                         style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\"/>"
                    ))
                    (PreEscaped("<link rel=\"icon\" href=\"data:,\"/>"))
                    title { (self.title) }
                    style { (PreEscaped(svg::STYLE)) (PreEscaped(STYLE)) }
                }
                body {
                    svg class="patterns" width="0" height="0" aria-hidden="true" focusable="false" {
                        (svg::patterns())
                    }
                    a class="skip" href="#findings" { "To the findings" }
                    header {
                        p class="tool" { (self.title) }
                        div class="tools" {
                            button type="button" id="theme" class="script" { "Dark or light" }
                            button type="button" id="help" class="script" aria-expanded="false"
                                aria-controls="keys" { "Keys (?)" }
                        }
                    }
                    (keys())
                    main {
                        (answer(&self.answer))
                        @for table in &self.tables { (one_table(table)) }
                        @if !self.notes.is_empty() {
                            ul class="notes" { @for note in &self.notes { li { (note) } } }
                        }
                        (self.findings())
                        (self.where_and_how())
                    }
                    footer { p { "Written by tornblk. This file needs no network and no other file." } }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }

    fn findings(&self) -> Markup {
        html! {
            section id="findings" aria-labelledby="findings-title" {
                h2 id="findings-title" {
                    @match self.shown.len() {
                        0 => "No finding to show",
                        1 => "The finding",
                        n => { (n) " findings" }
                    }
                }
                @if self.shown.len() > 1 {
                    nav aria-label="Findings" {
                        ol {
                            @for (i, one) in self.shown.iter().enumerate() {
                                li { a href={ "#f" (i + 1) } { (one.place) ": " (one.headline) } }
                            }
                        }
                    }
                }
                @for (i, one) in self.shown.iter().enumerate() { (finding(i + 1, one)) }
                @if self.more > 0 {
                    p class="more" { "And " (self.more) " more, which are not told here." }
                }
            }
        }
    }

    fn where_and_how(&self) -> Markup {
        html! {
            section aria-labelledby="environment" {
                h2 id="environment" { "Where this was tried" }
                div class="groups" {
                    @for (name, group) in &self.environment {
                        div class="group" { h3 { (name) } (facts(group)) }
                    }
                }
            }
            @if !self.commands.is_empty() {
                section aria-labelledby="again" {
                    h2 id="again" { "What to do next" }
                    @for (what, text) in &self.commands {
                        p { (what) ":" }
                        (command(text))
                    }
                }
            }
        }
    }
}

fn keys() -> Markup {
    html! {
        div id="keys" hidden="hidden" role="region" aria-label="Keys" {
            dl {
                dt { kbd { "j" } " or " kbd { "\u{2192}" } } dd { "the next finding" }
                dt { kbd { "k" } " or " kbd { "\u{2190}" } } dd { "the one before" }
                dt { kbd { "c" } } dd { "copy the command of this finding" }
                dt { kbd { "d" } } dd { "dark or light" }
                dt { kbd { "g" } } dd { "to the top" }
                dt { kbd { "?" } } dd { "show or hide this" }
            }
        }
    }
}

fn answer(answers: &[Answer]) -> Markup {
    let (first, rest) = match answers.split_first() {
        Some((first, rest)) => (Some(first), rest),
        None => (None, answers),
    };
    html! {
        section class="answer" aria-label="The answer" {
            @if let Some(first) = first {
                h1 class=(first.tone.class()) {
                    span class="sign" aria-hidden="true" { (first.tone.sign()) } (first.text)
                }
            }
            @for one in rest {
                p class=(one.tone.class()) {
                    span class="sign" aria-hidden="true" { (one.tone.sign()) } (one.text)
                }
            }
        }
    }
}

fn one_table(table: &Table) -> Markup {
    let last = table.head.len().saturating_sub(1);
    let number = |cell: &str| cell.chars().next().is_some_and(|c| c.is_ascii_digit());
    html! {
        div class="scroll" tabindex="0" role="region" aria-label=(table.caption) {
            table {
                caption { (table.caption) }
                thead { tr { @for name in &table.head { th scope="col" { (name) } } } }
                tbody {
                    @for (tone, cells) in &table.rows {
                        tr {
                            @for (i, cell) in cells.iter().enumerate() {
                                @if i == 0 {
                                    th scope="row" { (cell) }
                                } @else if i == last {
                                    td class={ "verdict " (tone.class()) } {
                                        span aria-hidden="true" { (tone.sign()) " " } (cell)
                                    }
                                } @else {
                                    td class=[number(cell).then_some("number")] { (cell) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn facts(facts: &[Fact]) -> Markup {
    html! {
        dl class="facts" {
            @for fact in facts {
                dt { (fact.name) }
                @match &fact.value {
                    Some(value) => dd { (value) },
                    None => dd class="unasked" { "not asked" },
                }
            }
        }
    }
}

fn command(text: &str) -> Markup {
    html! {
        div class="command" {
            pre tabindex="0" { code { (text) } }
            button type="button" class="copy script" { "Copy" }
        }
    }
}

fn finding(n: usize, one: &Shown) -> Markup {
    html! {
        article id={ "f" (n) } class="finding" tabindex="-1" aria-labelledby={ "f" (n) "-title" } {
            h3 id={ "f" (n) "-title" } {
                span class="place" { (one.place) } " " (one.headline)
            }
            @if !one.text.is_empty() { p class="text" { (one.text) } }
            @if !one.call.is_empty() { p class="call" { "The call: " code { (one.call) } } }
            @match &one.picture {
                Ok(picture) => (drawn(n, one, picture)),
                Err(why) => p class="unasked" { "No picture: " (why) "." }
            }
            @if !one.strip.is_empty() { (blocks(&one.strip)) }
            @if !one.blame.is_empty() {
                h4 { "What is to blame" }
                ul { @for text in &one.blame { li { (text) } } }
            }
            (facts(&one.facts))
            (states(one))
            @if !one.timeline.is_empty() {
                details open="open" {
                    summary { "What happened, step by step" }
                    pre class="steps" tabindex="0" { (one.timeline.join("\n")) }
                }
            }
            @if !one.others.is_empty() {
                details {
                    summary { "Also found in this state" }
                    ul { @for text in &one.others { li { (text) } } }
                }
            }
            @if !one.commands.is_empty() {
                h4 { "See it again" }
                @for text in &one.commands { (command(text)) }
            }
        }
    }
}

fn drawn(n: usize, one: &Shown, picture: &Picture) -> Markup {
    html! {
        figure {
            div class="scroll" tabindex="0" role="region" aria-label={ "Picture " (n) } {
                (svg::within(picture, &one.headline))
            }
            figcaption {
                @for text in &picture.told { p { (text) } }
            }
        }
        details class="as-text" {
            summary { "The same as text, for a mail" }
            pre tabindex="0" { (picture::text::text(picture, true)) }
            button type="button" class="copy script" { "Copy" }
        }
    }
}

/// The strip of the terminal, as what a unit shows.
fn blocks(cells: &[Cell]) -> Markup {
    html! {
        p class="strip" {
            "As it is read back, block by block: " code { (strip::strip(cells, true)) }
            " (■ new, □ old, × neither)"
        }
    }
}

/// The state as it was found, beside what it was shrunk to.
fn states(one: &Shown) -> Markup {
    let cell = |name: &str, state: &str| {
        html! {
            div { h4 { (name) } pre tabindex="0" { code { (state) } } }
        }
    };
    html! {
        @if !one.state.is_empty() {
            div class="states" {
                @if let Some(found) = &one.found { (cell("The state as it was found", found)) }
                (cell(if one.found.is_some() { "Shrunk to" } else { "The state" }, &one.state))
                @if let Some(passing) = &one.passing {
                    (cell("The nearest state that passes", passing))
                }
            }
        }
    }
}

impl Tone {
    #[cfg(test)]
    pub(super) const ALL: [Tone; 3] = [Tone::Bad, Tone::Nothing, Tone::Unclear];
}
