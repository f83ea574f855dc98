//! `[inference]`: the language model, and how much of what it computed is kept.

use std::path::PathBuf;

use memcube_actors::inference::{activation_cache::CacheSettings, remote::RemoteSettings};
use memcube_schemas::limits::{
    KV_DEVICE_BYTES_DEFAULT, KV_DISK_BYTES_DEFAULT, KV_RAM_BYTES_DEFAULT,
    REMOTE_SILENCE_MS_DEFAULT, REMOTE_WINDOW_TOKENS_DEFAULT, REPLY_MS_DEFAULT,
    SEGMENT_REPAIR_TOKENS_DEFAULT,
};
use serde::{Deserialize, Serialize};

use super::Secret;
use crate::inference::openai::mistake_of_url;

/// Processors that a model may use.
const THREADS_MAX: usize = 1_024;
/// Tokens of a window in which nothing would fit.
const WINDOW_TOKENS_MIN: usize = 256;
/// Tries of one request.
const RETRIES_MAX: usize = 10;
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
    /// A model behind a server that speaks OpenAI's chat completions.
    #[serde(rename = "openai")]
    OpenAi,
}

/// `[inference]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InferenceSettings {
    /// `none`, `local` or `openai`.
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
    /// With `openai`, the address before `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
    pub url: Option<String>,
    /// The key for that server. Best in `MEMCUBE__INFERENCE__API_KEY`.
    pub api_key: Option<Secret>,
    /// What that server calls the model.
    pub remote_model: Option<String>,
    /// Tokens that prompt and reply may have together there.
    pub window_tokens: usize,
    /// Certificates (PEM) of those who sign that server's certificate, in place of those whom
    /// browsers believe.
    pub tls_ca: Option<PathBuf>,
    /// Milliseconds that a reply may take.
    pub timeout_ms: u64,
    /// Milliseconds of silence after which that server is given up: before the first token, and
    /// between two.
    pub first_token_timeout_ms: u64,
    /// How often a request is tried again, as long as nothing of its answer has come.
    pub retries: usize,
    /// Tokens in a minute, prompts and replies together; 0 for any number.
    pub tokens_per_minute: u64,
    /// The same for each tenant.
    pub tenant_tokens_per_minute: u64,
    /// Whether that server reads prompts ahead of their answers, one token each, so that they are
    /// in its cache. It may charge for that.
    pub preloads: bool,
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
            url: None,
            api_key: None,
            remote_model: None,
            window_tokens: REMOTE_WINDOW_TOKENS_DEFAULT,
            tls_ca: None,
            timeout_ms: REPLY_MS_DEFAULT,
            first_token_timeout_ms: REMOTE_SILENCE_MS_DEFAULT,
            retries: RemoteSettings::default().retries,
            tokens_per_minute: 0,
            tenant_tokens_per_minute: 0,
            preloads: true,
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

    /// How a model elsewhere is asked.
    #[must_use]
    pub const fn remote(&self) -> RemoteSettings {
        RemoteSettings {
            ms_max: self.timeout_ms,
            silence_ms_max: self.first_token_timeout_ms,
            retries: self.retries,
            tokens_per_minute: self.tokens_per_minute,
            tenant_tokens_per_minute: self.tenant_tokens_per_minute,
            preloads: self.preloads,
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
        mistakes.extend(self.mistakes_elsewhere());
        mistakes
    }

    /// What is wrong with single values about a model elsewhere.
    fn mistakes_elsewhere(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Some(mistake) = self.url.as_deref().and_then(mistake_of_url) {
            mistakes.push(format!("`inference.url` {mistake}"));
        }
        let key = self.api_key.as_ref().map(Secret::expose);
        let is_key = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        if key.is_some_and(|key| !is_key(key)) {
            mistakes.push(
                "`inference.api-key` must be printable ASCII without spaces; leave it out for a \
                 server that wants none"
                    .to_owned(),
            );
        }
        if self.window_tokens < WINDOW_TOKENS_MIN {
            mistakes
                .push(format!("`inference.window-tokens` must be at least {WINDOW_TOKENS_MIN}"));
        }
        if self.timeout_ms == 0 || self.first_token_timeout_ms == 0 {
            mistakes.push(
                "`inference.timeout-ms` and `inference.first-token-timeout-ms` must be at least 1"
                    .to_owned(),
            );
        }
        if self.retries > RETRIES_MAX {
            mistakes.push(format!("`inference.retries` must be at most {RETRIES_MAX}"));
        }
        mistakes
    }

    /// What does not go together.
    pub(super) fn mistakes_together(&self) -> Vec<String> {
        let mut mistakes = self.mistakes_of_file();
        if self.kind == InferenceKind::OpenAi {
            let needed =
                [("url", self.url.is_none()), ("remote-model", self.remote_model.is_none())];
            let missing = needed.into_iter().filter(|(_, is_missing)| *is_missing);
            mistakes.extend(missing.map(|(key, _)| {
                format!("`inference.{key}` is missing, which `inference.kind` `openai` needs")
            }));
        }
        mistakes
    }

    fn mistakes_of_file(&self) -> Vec<String> {
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
