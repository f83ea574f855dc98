//! `[inference]`: the language model, and how much of what it computed is kept.

use std::path::PathBuf;

use memcube_actors::inference::activation_cache::CacheSettings;
use memcube_schemas::limits::{
    KV_DEVICE_BYTES_DEFAULT, KV_DISK_BYTES_DEFAULT, KV_RAM_BYTES_DEFAULT,
    SEGMENT_REPAIR_TOKENS_DEFAULT,
};
use serde::{Deserialize, Serialize};

/// Processors that a model may use.
const THREADS_MAX: usize = 1_024;
/// Digits of a SHA-256.
const CHECKSUM_DIGITS: usize = 64;

/// The kinds of language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum InferenceKind {
    /// None: memories are kept and found, and nobody answers.
    #[default]
    None,
    /// A model that this node runs.
    Local,
}

/// `[inference]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InferenceSettings {
    /// `none` or `local`.
    pub kind: InferenceKind,
    /// The folder with SmolLM2-135M-Instruct, as `make language-model` leaves it.
    pub model_dir: PathBuf,
    /// Another model in place of it: a GGUF file, or a folder with `model.safetensors`,
    /// `tokenizer.json` and `config.json`.
    pub model_file: Option<PathBuf>,
    /// What the model of `model-file` is called; the name of the file if left out.
    pub model_name: Option<String>,
    /// SHA-256 that `model-file` must have.
    pub checksum: Option<String>,
    /// Processors that a pass uses; 0 takes all.
    pub threads: usize,
    /// Bytes of keys and values in RAM. One tenant may have half of them.
    pub ram_bytes_max: u64,
    /// Bytes of conversations that stay on the device between turns. One tenant may have half.
    pub device_bytes_max: u64,
    /// Bytes of copies in the data directory of what lies in a bucket.
    pub disk_bytes_max: u64,
    /// Whether disk and object store hold 8 bits a number: half the bytes, and not exact.
    pub cold_in_8_bits: bool,
    /// Whether memories that are new to a conversation come from what was computed for each of them
    /// by itself, rather than being computed behind all that stands before them. Less is computed
    /// before the first token, and the text **differs** from what the model would have said, in
    /// most replies; they say `is_exact: false`.
    pub independent_segments: bool,
    /// First tokens of each such memory that are computed where they stand, which brings the text
    /// nearer to the exact one.
    pub segment_repair_tokens: usize,
}

impl Default for InferenceSettings {
    fn default() -> Self {
        Self {
            kind: InferenceKind::default(),
            model_dir: default_model_dir(),
            model_file: None,
            model_name: None,
            checksum: None,
            threads: 0,
            ram_bytes_max: KV_RAM_BYTES_DEFAULT,
            device_bytes_max: KV_DEVICE_BYTES_DEFAULT,
            disk_bytes_max: KV_DISK_BYTES_DEFAULT,
            cold_in_8_bits: false,
            independent_segments: false,
            segment_repair_tokens: SEGMENT_REPAIR_TOKENS_DEFAULT,
        }
    }
}

impl InferenceSettings {
    /// How much the tiers hold.
    #[must_use]
    pub const fn cache(&self) -> CacheSettings {
        CacheSettings {
            ram_bytes_max: self.ram_bytes_max,
            tenant_ram_bytes_max: self.ram_bytes_max / 2,
            device_bytes_max: self.device_bytes_max,
            tenant_device_bytes_max: self.device_bytes_max / 2,
            cold_in_8_bits: self.cold_in_8_bits,
        }
    }

    /// How many first tokens of independent segments are repaired, if there are any segments.
    #[must_use]
    pub fn repair_tokens(&self) -> Option<usize> {
        self.independent_segments.then_some(self.segment_repair_tokens)
    }

    pub(super) fn mistakes_in_values(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.threads > THREADS_MAX {
            mistakes.push(format!("`inference.threads` must be at most {THREADS_MAX}"));
        }
        let is_checksum = |text: &String| {
            text.len() == CHECKSUM_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if self.checksum.as_ref().is_some_and(|text| !is_checksum(text)) {
            mistakes.push(format!(
                "`inference.checksum` must be a SHA-256 of {CHECKSUM_DIGITS} hexadecimal digits; \
                 `sha256sum FILE` tells it"
            ));
        }
        mistakes
    }

    /// What does not go together.
    pub(super) fn mistakes_together(&self) -> Vec<String> {
        let needs_file =
            [("model-name", self.model_name.is_some()), ("checksum", self.checksum.is_some())];
        let needs_file = needs_file.into_iter().filter(|(_, is_given)| *is_given);
        match self.model_file {
            Some(_) => Vec::new(),
            None => needs_file
                .map(|(key, _)| format!("`inference.{key}` needs `inference.model-file`"))
                .collect(),
        }
    }
}

fn default_model_dir() -> PathBuf {
    std::env::var_os("MEMCUBE_LANGUAGE_MODEL_DIR").map_or_else(
        || super::cache_dir().join("memcube/models/smollm2-135m-instruct"),
        PathBuf::from,
    )
}

#[cfg(test)]
mod tests {
    use figment::{
        Figment,
        providers::{Format, Toml},
    };

    use super::*;

    #[test]
    fn independent_segments_are_off_unless_somebody_turns_them_on() {
        let table = [
            ("", None),
            ("segment-repair-tokens = 4", None),
            ("independent-segments = true", Some(16)),
            ("independent-segments = true\nsegment-repair-tokens = 0", Some(0)),
        ];
        for (text, expected) in table {
            let settings: InferenceSettings =
                Figment::from(Toml::string(text)).extract().expect("valid");
            assert_eq!(settings.repair_tokens(), expected, "{text}");
        }
    }
}
