//! `ci/fuzz` with programs that only say they fuzz: what is found is counted, and no corpus is lost.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a target's program does; `$artifacts` and `$small` are the folders that it is given.
const FINDS: &str = "echo x >\"${artifacts}crash-1\"; exit 77";
const FINDS_NOTHING: &str = "exit 0";

/// A tree with the script, a toolchain that builds nothing, and two targets.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(first: &str, second: &str) -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for file in ["ci/fuzz", "ci/lib.sh", "Cargo.toml"] {
            let to = tree.path(file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(root.join(file), to).unwrap();
        }
        let toolchain = [
            ("cargo", "exit 0"),
            ("rustc", "echo rustc 99.0.0; echo host: here"),
            ("c++", "exit 0"),
        ];
        for (name, does) in toolchain {
            tree.program(&format!("bin/{name}"), does);
        }
        for (name, does) in [("first", first), ("second", second)] {
            tree.write(&format!("fuzz/libfuzzer/src/bin/{name}.rs"), "");
            tree.write(&format!("fuzz/corpus/{name}/old"), name);
            tree.program(
                &format!("target/libfuzzer/here/release/{name}"),
                &format!(
                    "for arg; do
                         case $arg in
                         -artifact_prefix=*) artifacts=${{arg#*=}} ;;
                         -set_cover_merge=1) merge=1 ;;
                         -*) ;;
                         *) [ -n \"$small\" ] || small=$arg ;;
                         esac
                     done
                     [ -n \"$merge\" ] || echo 'stat::number_of_executed_units: 5'
                     {does}"
                ),
            );
        }
        tree
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn program(&self, file: &str, does: &str) {
        self.write(file, &format!("#!/bin/sh\nsmall=\nmerge=\n{does}\n"));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(file), mode).unwrap();
    }

    /// Runs the script: its exit code, and what it said.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let mut path = std::ffi::OsString::from(self.path("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut command = Command::new(self.path("ci/fuzz"));
        let Output { status, stdout, stderr } =
            command.args(args).env("PATH", path).env_remove("OUT").output().unwrap();
        let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (status.code().unwrap(), said)
    }

    /// The names in a folder.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut all: Vec<String> =
            entries.map(|entry| name(entry).into_string().unwrap()).collect();
        all.sort();
        all
    }
}

#[test]
fn what_is_found_again_is_a_finding_and_the_others_have_their_turn() {
    let tree = Tree::new(FINDS, FINDS_NOTHING);
    // What a run left behind that was killed.
    tree.write("fuzz-out/first.fresh/crash-0", "");
    for _ in 0..2 {
        let (code, said) = tree.run(&["1"]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("first: 5 executions") && said.contains(" 1 findings"), "{said}");
        assert!(said.contains("fuzz-out/first.found/crash-1: see"), "{said}");
        assert!(said.contains("second: 5 executions"), "{said}");
        assert_eq!(tree.names("fuzz-out/first.found"), ["crash-0", "crash-1"]);
    }
    assert!(!tree.path("fuzz-out/first.fresh").exists());
}

#[test]
fn a_program_that_fails_and_finds_nothing_ends_it() {
    let (code, said) = Tree::new("exit 9", FINDS_NOTHING).run(&["1"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("first ended with 9 and found nothing"), "{said}");
}

#[test]
fn a_corpus_is_replaced_by_one_that_is_there() {
    let merges = "[ -z \"$merge\" ] || echo new >\"$small/new\"";
    let tree = Tree::new(merges, merges);
    let (code, said) = tree.run(&["--merge", "1"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(tree.names("fuzz/corpus"), ["first", "second"]);
    assert_eq!(tree.names("fuzz/corpus/first"), ["new"]);
}

#[test]
fn a_corpus_that_was_merged_into_nothing_stays() {
    let tree = Tree::new(FINDS_NOTHING, FINDS_NOTHING);
    let (code, said) = tree.run(&["--merge", "1"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("first was merged into nothing"), "{said}");
    assert_eq!(tree.names("fuzz/corpus"), ["first", "second"]);
    assert_eq!(tree.names("fuzz/corpus/first"), ["old"]);
}

/// The folder for the copy cannot be made.
#[test]
fn a_corpus_that_cannot_be_copied_stays() {
    let merges = "[ -z \"$merge\" ] || echo new >\"$small/new\"";
    let tree = Tree::new(merges, merges);
    tree.program("bin/cp", "exit 1");
    let (code, said) = tree.run(&["--merge", "1"]);
    assert_eq!(code, 2, "{said}");
    assert_eq!(tree.names("fuzz/corpus"), ["first", "second"]);
    assert_eq!(tree.names("fuzz/corpus/first"), ["old"]);
}
