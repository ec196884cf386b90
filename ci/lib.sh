# Shared by ci/demo, ci/fuzz, ci/package, ci/test, ci/planted, ci/soak and ci/slow: what a fresh machine lacks. Sourced from the
# project's root.

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# Installs packages of the distribution where one of the given commands is missing.
need() { # COMMAND PACKAGE...
    command -v "$1" >/dev/null 2>&1 && return 0
    command=$1
    shift
    install_packages "$command" "$@"
}

# Lists are fetched once a script.
updated=

install_packages() { # WHAT-IS-MISSING PACKAGE...
    command=$1
    shift
    command -v apt-get >/dev/null 2>&1 ||
        fail "$command is missing, and this machine has no apt-get to install $*: install it by hand"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || fail "$command is missing: run as root: apt-get install $*"
        as_root=sudo
    fi
    echo "installing $* ($command is missing)"
    log=$(mktemp)
    if ! { { [ -n "$updated" ] || $as_root apt-get update -q; } &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install $*; see above"
    fi
    updated=yes
    rm -f "$log"
}

need_rust() {
    command -v cargo >/dev/null 2>&1 ||
        fail "cargo is missing: install Rust $msrv or newer, the one prerequisite of this project"
    have=$(rustc --version | cut -d' ' -f2 | cut -d- -f1)
    [ "$(printf '%s\n%s\n' "$msrv" "$have" | sort -V | head -n 1)" = "$msrv" ] ||
        fail "rustc is $have, and this project needs $msrv or newer"
}

msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
