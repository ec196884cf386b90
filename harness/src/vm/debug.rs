//! What a kernel developer adds to a guest: parameters for its kernel, and a debugger.

use std::str::FromStr;

/// The port that gdb's users know.
pub const DEFAULT_PORT: u16 = 1234;

/// A debugger's way into a guest, which waits for one before its first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gdb {
    /// On this machine only.
    pub port: u16,
}

impl Default for Gdb {
    fn default() -> Gdb {
        Gdb { port: DEFAULT_PORT }
    }
}

impl FromStr for Gdb {
    type Err = String;

    /// `1234`, `tcp:1234`, `tcp::1234`.
    fn from_str(text: &str) -> Result<Gdb, String> {
        let port = text.strip_prefix("tcp:").unwrap_or(text);
        let port = port.strip_prefix(':').unwrap_or(port);
        match port.parse() {
            Ok(port) if port > 0 => Ok(Gdb { port }),
            _ => Err(format!(
                "`{text}` is no port: give a number such as {DEFAULT_PORT}, or tcp:{DEFAULT_PORT}"
            )),
        }
    }
}

/// Parameters that would take from the harness what it stands on, and what that is.
const OURS: [(&str, &str); 7] = [
    ("rdinit", "the agent is the guest's first program"),
    ("init", "the agent is the guest's first program"),
    ("noinitrd", "the agent is in the initramfs"),
    ("console", "the kernel's messages are read from the serial console"),
    ("quiet", "the kernel's warnings are read from the console"),
    ("panic", "a panic must end the guest at once, to be noticed"),
    ("oops", "an oops must end the guest at once, to be noticed"),
];

/// Parameters as they are added to the guest's own: words with one space between them; `None`: there
/// are none.
///
/// # Errors
/// A sentence: the harness could not do its work with them.
pub fn check_append(given: &str) -> Result<Option<String>, String> {
    if let Some(c) = given.chars().find(|c| c.is_control() && !c.is_whitespace()) {
        return Err(format!("a kernel's command line has no character {c:?}"));
    }
    for word in given.split_whitespace() {
        let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
        if name == "--" {
            return Err("what comes after `--` is for the guest's first program, which is the agent: leave it out".into());
        }
        if let Some((_, why)) = OURS.iter().find(|(ours, _)| *ours == name) {
            return Err(format!("`{word}` cannot be changed: {why}"));
        }
        if name == "loglevel" && value.and_then(|v| v.parse::<u32>().ok()).is_none_or(|v| v < 5) {
            return Err(format!(
                "`{word}` hides the kernel's warnings, which are read from the console: give 5 or more"
            ));
        }
    }
    let words: Vec<&str> = given.split_whitespace().collect();
    Ok((!words.is_empty()).then(|| words.join(" ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_port_is_said_in_three_ways() {
        for text in ["4321", "tcp:4321", "tcp::4321"] {
            assert_eq!(text.parse(), Ok(Gdb { port: 4321 }), "{text}");
        }
        for text in ["", "0", "65536", "raw", "unix:/x", "tcp:host:1"] {
            let error = text.parse::<Gdb>().unwrap_err();
            assert!(error.contains("is no port: give a number such as 1234"), "{error}");
        }
    }

    #[test]
    fn parameters_are_words() {
        assert_eq!(
            check_append("  slub_debug=FZP \t xfs.x=1\n"),
            Ok(Some("slub_debug=FZP xfs.x=1".into()))
        );
        assert_eq!(check_append(" "), Ok(None));
        // Only the whole name is meant.
        for fine in
            ["init_on_alloc=1", "panic_on_warn=1", "loglevel=7", "initcall_debug", "x=quiet"]
        {
            assert_eq!(check_append(fine), Ok(Some(fine.to_owned())));
        }
    }

    #[test]
    fn what_the_harness_stands_on_stays() {
        for (given, about) in [
            ("a=1 rdinit=/bin/sh", "the agent is"),
            ("init=/x", "the agent is"),
            ("console=tty0", "serial console"),
            ("quiet", "from the console"),
            ("panic=0", "noticed"),
            ("oops=continue", "noticed"),
            ("loglevel=4", "give 5 or more"),
            ("loglevel", "give 5 or more"),
            ("debug -- single", "the agent"),
            ("a\u{1}b", "no character"),
        ] {
            let error = check_append(given).unwrap_err();
            assert!(error.contains(about), "{given}: {error}");
        }
    }
}
