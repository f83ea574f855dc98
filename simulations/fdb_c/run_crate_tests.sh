#!/bin/sh
# Runs the tests of the `foundationdb` crate, unmodified, against this library.
#
#   simulations/fdb_c/run_crate_tests.sh [target directory]
#
# Needs libclang, as every build of that crate does. Ends with 1 if a test binary that is known to
# pass does not, and with 2 if the tests cannot be built.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${1:-${CARGO_TARGET_DIR:-$root/target}}
version=0.11.0

cd "$root"
cargo build --quiet --locked -p memcube-fdb-c --features export --target-dir "$target/fdb_c"
library="$target/fdb_c/debug"

# The source that cargo unpacked: the one this workspace is locked to.
cargo fetch --quiet --locked
source=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -type d \
	-name "foundationdb-$version" | head -n 1)
if [ -z "$source" ]; then
	echo "run_crate_tests: the source of foundationdb $version is not in cargo's registry" >&2
	exit 2
fi
work="$target/fdb_c/crate-tests"
mkdir -p "$work"
rm -rf "$work/foundationdb"
cp -r "$source" "$work/foundationdb"
# By itself, and not a member of the workspace around it.
printf '\n[workspace]\n' >>"$work/foundationdb/Cargo.toml"

export FDB_CLIENT_LIB_PATH="$library"
export LD_LIBRARY_PATH="$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cd "$work/foundationdb"
features=embedded-fdb-include,fdb-7_3,uuid,recipes,trace
build() {
	cargo test --no-default-features --features "$features" --tests --target-dir "$work/target" "$@"
}
build --quiet --no-run || exit 2

passed=0
failed=
for file in tests/*.rs; do
	name=$(basename "$file" .rs)
	if timeout 180 cargo test --quiet --no-default-features --features "$features" \
		--test "$name" --target-dir "$work/target" >"$work/$name.log" 2>&1; then
		passed=$((passed + 1))
		echo "pass  $name"
	else
		failed="$failed $name"
		echo "FAIL  $name (log: $work/$name.log)"
	fi
done
echo "run_crate_tests: $passed test binaries pass${failed:+, these do not:$failed}"
[ -z "$failed" ]
