//! Lets programs link that use FoundationDB without its client library at hand.
//!
//! The `foundationdb` crate asks the linker for `libfdb_c`. Memcube loads that library when it is
//! used (see `src/storage/foundationdb/client.rs`), so an archive with nothing in it is enough.

use std::{env, fs, path::PathBuf};

/// What every archive begins with.
const ARCHIVE_MAGIC: &[u8] = b"!<arch>\n";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_FDB").is_none() {
        return;
    }
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets `OUT_DIR`"));
    fs::write(directory.join("libfdb_c.a"), ARCHIVE_MAGIC).expect("`OUT_DIR` can be written");
    println!("cargo::rustc-link-search=native={}", directory.display());
}
