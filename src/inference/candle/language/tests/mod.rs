//! Tests of language models on tiny ones with random weights; nothing is downloaded.

mod files;
mod forward;
mod segments;
mod sessions;
mod text;
mod tiny;
