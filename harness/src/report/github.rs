//! Annotations that GitHub Actions shows on a workflow's page.

use super::{findings, headline, text};
use crate::explore::ExploreReport;
use crate::run::{RunReport, Verdict};
use std::io::{self, Write};

pub fn write(report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
    for lane in &report.lanes {
        let on =
            if report.kernels.len() > 1 { format!(" on {}", lane.kernel) } else { String::new() };
        let title = format!("{} {}{on}", lane.suite, lane.name);
        let why = lane.why.clone().unwrap_or_default();
        match lane.verdict {
            Verdict::Passed => {}
            Verdict::Violated => {
                if !why.is_empty() {
                    line(out, "error", &title, &why)?;
                }
                for (cut, finding) in findings(lane) {
                    let again = cut.again.last().cloned().unwrap_or_default();
                    let said = format!("{}\n{}\n{again}", headline(finding), text(finding));
                    line(out, "error", &title, &said)?;
                }
                if let Some(explored) = lane.explored.as_ref().filter(|e| e.exit == 1) {
                    line(out, "error", &title, super::explore::failures(explored).trim_end())?;
                }
            }
            Verdict::Inconclusive | Verdict::Error => line(out, "error", &title, &why)?,
            Verdict::Unsupported | Verdict::KnownRed => line(out, "notice", &title, &why)?,
        }
    }
    for kernel in &report.kernels {
        if let Some(error) = &kernel.error {
            line(out, "error", &format!("kernel {}", kernel.given), error)?;
        }
    }
    Ok(())
}

/// Of an exploration, of a program of one's own, too.
pub fn explored(report: &ExploreReport, out: &mut dyn Write) -> io::Result<()> {
    let name = match (report.suite.as_str(), report.lane.as_str()) {
        (_, "") => "explore".to_owned(),
        (suite, lane) => format!("{suite} {lane}").trim_start().to_owned(),
    };
    for kept in &report.failures {
        let title = format!("{name} on {}", kept.failure.profile);
        line(out, "error", &title, super::explore::told(report, |one| one == kept).trim_end())?;
    }
    for profile in &report.profiles {
        let title = format!("{name} on {}", profile.profile);
        match profile.verdict {
            Verdict::Passed => {}
            // Beside those that are told above.
            Verdict::Violated if profile.not_shrunk == 0 && profile.failures > 0 => {}
            Verdict::Violated => {
                let more = format!("{} states fail that were not shrunk", profile.not_shrunk);
                line(out, "error", &title, &more)?;
            }
            _ => line(out, "error", &title, profile.why.as_deref().unwrap_or("inconclusive"))?,
        }
    }
    if report.profiles.is_empty() || !report.missing.is_empty() {
        let why = report.why.as_deref().unwrap_or("nothing was explored");
        line(out, "error", &name, why)?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, level: &str, title: &str, text: &str) -> io::Result<()> {
    writeln!(out, "::{level} title={}::{}", property(title), data(text))
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn annotations_are_one_line_each() {
        let mut out = Vec::new();
        super::write(&crate::report::testing::report(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("::error title=direct-atomic raw::torn: /dev/vda"), "{first}");
        assert!(first.contains("%0Atornblk repro"), "{first}");
        assert_eq!(super::property("a:b,c%\n"), "a%3Ab%2Cc%25%0A");
    }
}
