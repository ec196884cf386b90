//! The whole report as JSON.

use crate::run::RunReport;
use std::io;
use std::path::Path;

pub fn write(report: &RunReport, path: &Path) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    super::save(path, &text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn a_report_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let report = crate::report::testing::report();
        super::write(&report, &path).unwrap();
        let text = std::fs::read(&path).unwrap();
        assert_eq!(serde_json::from_slice::<crate::run::RunReport>(&text).unwrap(), report);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["exit"], 1);
        assert_eq!(value["lanes"][0]["verdict"], "violated");
        assert_eq!(value["lanes"][0]["reports"][0]["judgement"]["findings"][0]["clause"], "torn");
    }
}
