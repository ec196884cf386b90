//! `tornblk`: see `tornblk --help`.

fn main() -> std::process::ExitCode {
    tornblk::cli::main()
}
