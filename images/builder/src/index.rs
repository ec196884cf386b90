//! apt's package index: stanzas of `Field: value` lines (deb-control(5)).

use std::collections::HashMap;

use crate::version;

/// The packages of one or several indexes.
#[derive(Debug, Default)]
pub(crate) struct Index {
    texts: Vec<String>,
    /// Name → (text, start, end) of each stanza.
    stanzas: HashMap<String, Vec<(usize, usize, usize)>>,
}

/// One version of one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stanza<'a>(&'a str);

impl Index {
    pub(crate) fn add(&mut self, text: String) {
        let number = self.texts.len();
        let mut start = 0;
        while start < text.len() {
            let end = text[start..].find("\n\n").map_or(text.len(), |i| start + i + 1);
            if let Some(name) = Stanza(&text[start..end]).field("Package") {
                self.stanzas.entry(name.to_owned()).or_default().push((number, start, end));
            }
            start = end + 1;
        }
        self.texts.push(text);
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.stanzas.keys().map(String::as_str)
    }

    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = Stanza<'_>> {
        let found = self.stanzas.get(name).map(Vec::as_slice).unwrap_or_default();
        found.iter().map(|(text, start, end)| Stanza(&self.texts[*text][*start..*end]))
    }

    pub(crate) fn newest(&self, name: &str) -> Option<Stanza<'_>> {
        self.all(name).max_by(|a, b| version::compare(a.version(), b.version()))
    }
}

impl<'a> Stanza<'a> {
    /// The first line of a field.
    pub(crate) fn field(self, name: &str) -> Option<&'a str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub(crate) fn name(self) -> &'a str {
        self.field("Package").unwrap_or_default()
    }

    pub(crate) fn version(self) -> &'a str {
        self.field("Version").unwrap_or_default()
    }

    pub(crate) fn sha256(self) -> &'a str {
        self.field("SHA256").unwrap_or_default()
    }

    /// Bytes to fetch.
    pub(crate) fn size(self) -> u64 {
        self.field("Size").and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// Names that it depends on: the first of alternatives, without versions.
    pub(crate) fn depends(self) -> Vec<&'a str> {
        let fields = [self.field("Pre-Depends"), self.field("Depends")];
        let wanted = fields.into_iter().flatten().flat_map(|f| f.split(','));
        wanted
            .filter_map(|d| d.split('|').next()?.split_whitespace().next())
            .map(|d| d.split(':').next().unwrap_or(d))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "Package: fio\nVersion: 3.39-1\nDepends: libc6 (>= 2.38), \
        python3:any, libaio1t64 | libaio1\nPre-Depends: zlib1g\nDescription: a\n Package: not-me\n\
        SHA256: aa\nSize: 12\n\nPackage: fio\nVersion: 3.9-1\nSHA256: bb\n\nPackage: fio-examples\n\
        Version: 1\n";

    #[test]
    fn stanzas_are_found_and_ordered() {
        let mut index = Index::default();
        index.add(TEXT.to_owned());
        index.add("Package: fio\nVersion: 3.39-1~bpo12+1\n".to_owned());
        let fio = index.newest("fio").unwrap();
        assert_eq!((fio.version(), fio.sha256(), fio.size()), ("3.39-1", "aa", 12));
        assert_eq!(fio.depends(), ["zlib1g", "libc6", "python3", "libaio1t64"]);
        assert_eq!(index.all("fio").count(), 3);
        assert_eq!(index.newest("fio-examples").unwrap().name(), "fio-examples");
        assert!(index.newest("not-me").is_none());
        let mut names: Vec<_> = index.names().collect();
        names.sort_unstable();
        assert_eq!(names, ["fio", "fio-examples"]);
    }

    #[test]
    fn an_empty_index_is_empty() {
        let mut index = Index::default();
        index.add(String::new());
        index.add("\n\n".to_owned());
        assert_eq!(index.names().count(), 0);
    }
}
