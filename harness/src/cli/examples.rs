//! What the help of each command ends with: lines that can be typed. A test reads them all.

pub(super) const TORNBLK: &str = "\
Examples:
  tornblk doctor                            is everything here that a run needs?
  tornblk run                               about three minutes on two cores
  tornblk run --exec ./write.sh --check ./check.sh
  tornblk repro tornblk-out/explored/failure-001.tornblk";

pub(super) const RUN: &str = "\
Examples:
  tornblk run                                                the suite direct-atomic
  tornblk run --lane raw --fault tear-atomic                 a disk that lies has to be caught
  tornblk run --kernel 6.12,7.2,7.3                          a table of lanes and kernels
  tornblk run hole-punch --known builtin                     races; only what is new fails
  tornblk run databases                                      may the double write be switched off?
  tornblk run --junit junit.xml --format github --out run    for a CI server

Your own program:
  tornblk run --exec ./write.sh --check ./check.sh
  tornblk run --exec 'echo a >a && sync a' --check 'test ! -e a || grep -qx a a'
  tornblk run ./mine.toml                                    a suite of such programs

";

pub(super) const REPRO: &str = "\
Examples:
  tornblk repro found/failure-001.tornblk             judged anew: exits 1 if it fails again
  tornblk repro found/failure-001.tornblk --shell     a shell in a guest with the disk in that state
  tornblk repro tornblk-out/run/raw/cut-002           a cut that a run kept";

pub(super) const EXPLORE: &str = "\
Examples:
  tornblk explore run/raw                                     on the disk that it was recorded on
  tornblk explore run/raw --profile lb512,req16k --out found  on two others; failures go to found
  tornblk explore run/raw --time 2h --shard 3/8 --out part-3  a part of it, for one of 8 machines
  tornblk explore run/raw --out found --resume                go on where it ended
  tornblk explore run --pages innodb --profile req16k,lb512   are a database's pages ever torn?
  tornblk explore disk.rec --list | wc -l                     how many states there are";

pub(super) const AUDIT: &str = "\
Examples:
  tornblk audit out --page-size 16k --files '*.ibd'                  on the disk that it was recorded on
  tornblk audit out --page-size 8k --profile req8k,piece8k,lb512     on others
  tornblk audit disk.rec --page-size 16k --map map.txt               map.txt: filefrag -v, in the guest";

pub(super) const REPORT: &str = "\
Examples:
  tornblk report merge part-1 part-2 part-3
  tornblk report picture found/failure-001.tornblk";

pub(super) const REPORT_MERGE: &str = "\
Examples:
  tornblk report merge part-1 part-2 part-3
  tornblk report merge parts/*/ --out merged --junit merged.xml";

pub(super) const REPORT_PICTURE: &str = "\
Examples:
  tornblk report picture found/failure-001.tornblk                     as text, for a mail
  tornblk report picture found/failure-001.tornblk --svg failure.svg   for a bug report";

pub(super) const IMAGE: &str = "\
Examples:
  tornblk image build --kernel 7.3       of Debian's packages
  tornblk image list
  tornblk image gc";

pub(super) const IMAGE_BUILD: &str = "\
Examples:
  tornblk image build                        the kernel that runs take by default
  tornblk image build --kernel 6.12          the newest of a series
  tornblk image build --kernel ~/linux       of your own build tree
  tornblk image build --refresh              ask the mirror for newer packages";

pub(super) const IMAGE_LIST: &str = "\
Examples:
  tornblk image list";

pub(super) const IMAGE_GC: &str = "\
Examples:
  tornblk image gc";

pub(super) const IMAGE_KCONFIG: &str = "\
Examples:
  tornblk image kconfig >> .config            then: make olddefconfig
  tornblk image kconfig --debug >> .config    with lockdep, KASAN and debugging symbols";

pub(super) const RECORDING: &str = "\
Examples:
  tornblk recording info disk.rec
  tornblk recording export disk.rec -o disk.img";

pub(super) const RECORDING_INFO: &str = "\
Examples:
  tornblk recording info disk.rec
  tornblk recording info run/raw --marks      of a lane that a run kept";

pub(super) const RECORDING_VERIFY: &str = "\
Examples:
  tornblk recording verify disk.rec
  tornblk recording verify disk.rec --base /mnt/old/disk.img";

pub(super) const RECORDING_EXPORT: &str = "\
Examples:
  tornblk recording export disk.rec -o disk.img                          as it was in the end
  tornblk recording export disk.rec --state req16k/p120:none -o cut.img  after a power cut
  tornblk recording export disk.rec --format qcow2 -o disk.qcow2
  tornblk recording export disk.rec --states-from names --hash           NAME SHA256, a line each
  tornblk recording export disk.rec --format dm-log-writes -o disk.log --base-out start.img";

pub(super) const RECORDING_IMPORT: &str = "\
Examples:
  tornblk recording import --base start.img disk.log -o disk.rec
  tornblk recording import --base start.img --atomic-unit-max 16k disk.log -o disk.rec";

pub(super) const DOCTOR: &str = "\
Examples:
  tornblk doctor
  tornblk doctor --guest      starts one, too: does KVM work?";

pub(super) const MANUAL: &str = "\
Examples:
  tornblk manual manual       then: man -l manual/man1/tornblk-run.1";

pub(super) const STATUS: &str = "\
Examples:
  tornblk status --control disk.ctl";

pub(super) const LIMITS: &str = "\
Examples:
  tornblk limits --control disk.ctl";

pub(super) const RESIZE: &str = "\
Examples:
  tornblk resize --control disk.ctl      after: truncate -s 2g disk.img";

pub(super) const MARK: &str = "\
Examples:
  tornblk mark --control disk.ctl 'transaction 17 acknowledged'";

pub(super) const STALL: &str = "\
Examples:
  tornblk stall --control disk.ctl --op flush --nth 1        the next flush
  tornblk stall --control disk.ctl --op write --range 64k+4k --for 10s
  tornblk stall --control disk.ctl --op write --when before-completion";

pub(super) const RELEASE: &str = "\
Examples:
  tornblk release --control disk.ctl 3      the token that `tornblk stall` told";

pub(super) const FAULT: &str = "\
Examples:
  tornblk fault --control disk.ctl eio,range=1m+4k,nth=1
  tornblk fault --control disk.ctl ignore-flush";

pub(super) const CRASH: &str = "\
Examples:
  tornblk crash --control disk.ctl                                      now
  tornblk crash --control disk.ctl --at submit --op write --nth 3       right after the third write
  tornblk crash --control disk.ctl --mark acknowledged --state none     nothing volatile survives";

pub(super) const USE_STATE: &str = "\
Examples:
  tornblk use-state --control disk.ctl req16k/p120:none
  tornblk use-state --control disk.ctl live      the disk as it is now";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::cli::Cli;
    use clap::{Command, CommandFactory as _, Parser as _};

    /// As a shell would, as far as examples need it: up to where something else begins.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match (quote, c) {
                (Some(q), c) if c == q => quote = None,
                (Some(_), c) => word.get_or_insert_default().push(c),
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                // What comes after two spaces tells what it does.
                (None, ' ') => {
                    words.extend(word.take());
                    if chars.peek() == Some(&' ') {
                        break;
                    }
                }
                (None, '|' | '>' | '&' | ';') => break,
                (None, c) => word.get_or_insert_default().push(c),
            }
        }
        assert_eq!(quote, None, "an open quote: {line}");
        words.extend(word);
        words
    }

    /// Lines that begin with the program's name; those of others are no matter of ours.
    fn examples(command: &Command) -> Vec<Vec<String>> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
        lines.filter(|line| line.starts_with("tornblk ")).map(words).collect()
    }

    /// How many there are, or what is wrong with one.
    fn check(command: &Command, path: &str) -> Result<usize, String> {
        let all = examples(command);
        if all.is_empty() {
            return Err(format!("the help of `{path}` has no example"));
        }
        for words in &all {
            let line = words.join(" ");
            if !line.starts_with(path) {
                return Err(format!("`{line}` in the help of `{path}`"));
            }
            Cli::try_parse_from(words)
                .map_err(|error| format!("`{line}` in the help of `{path}`: {error}"))?;
        }
        let mut sum = all.len();
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            sum += check(below, &format!("{path} {}", below.get_name()))?;
        }
        Ok(sum)
    }

    #[test]
    fn the_help_of_each_command_has_examples_that_can_be_typed() {
        let all = check(&Cli::command(), "tornblk").unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(all > 40, "{all}");
        assert_eq!(words("tornblk mark 'a  b' c   said"), ["tornblk", "mark", "a  b", "c"]);
        assert_eq!(words("tornblk image kconfig >> .config"), ["tornblk", "image", "kconfig"]);
    }

    #[test]
    fn an_example_that_cannot_be_typed_is_noticed() {
        let wrong = Command::new("doctor").after_help("Examples:\n  tornblk doctor --patient");
        let error = check(&wrong, "tornblk doctor").unwrap_err();
        assert!(error.contains("--patient"), "{error}");
        let error = check(&Command::new("x"), "tornblk x").unwrap_err();
        assert!(error.contains("no example"), "{error}");
        // Of another command.
        assert!(check(&wrong, "tornblk image").is_err());
    }
}
