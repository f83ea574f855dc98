//! Text to tokens and back, from the data in a model's file.
//!
//! Text never becomes a mark: whoever writes `<|im_end|>` gets the pieces of these characters.
//! Marks come from [`Vocabulary::encode_marked`] only, which the chat template uses.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::error::ModelError;
use super::gguf::Gguf;

/// GGUF's kind of a token that is text.
const KIND_NORMAL: u64 = 1;
/// How Llama 3 splits text before it makes tokens: up to three digits at a time.
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// How Qwen 2 does: one digit at a time.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The tokens of a model.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    bytes: Vec<Vec<u8>>,
    /// Marks by their text.
    marks: HashMap<String, u32>,
    digest: [u8; 32],
    bos: Option<u32>,
    adds_bos: bool,
    ends: Vec<u32>,
}

impl Vocabulary {
    /// Reads the tokenizer of a GGUF file.
    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let kind = gguf.text("tokenizer.ggml.model").unwrap_or_default();
        if kind != "gpt2" {
            let message = format!("tokenizers of the kind `{kind}` cannot be used");
            return Err(ModelError::Tokenizer { message });
        }
        let pieces = gguf.texts("tokenizer.ggml.tokens")?;
        let merges = gguf.texts("tokenizer.ggml.merges")?;
        let kinds = gguf.list("tokenizer.ggml.token_type").ok();
        let is_mark = |token: usize| {
            let kind = kinds.and_then(|kinds| kinds.get(token)).and_then(|kind| {
                kind.to_i32().ok().map(i64::from).or_else(|| kind.to_u32().ok().map(i64::from))
            });
            kind.is_some_and(|kind| u64::try_from(kind) != Ok(KIND_NORMAL))
        };
        let marks = (0..pieces.len()).filter(|&token| is_mark(token));
        let marks: HashMap<String, u32> =
            marks.map(|token| (pieces[token].clone(), token as u32)).collect();
        let number = |name: &str| {
            let token = gguf.number(&format!("tokenizer.ggml.{name}_token_id"));
            token.filter(|&token| token < pieces.len()).map(|token| token as u32)
        };
        let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        Ok(Self {
            tokenizer: byte_level(&pieces, &merges, pre)?,
            bytes: pieces.iter().map(|piece| bytes_of(piece, &marks)).collect(),
            digest: digest_of(&pieces, &merges, pre),
            bos: number("bos"),
            adds_bos: gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(false),
            ends: ["eos", "eot", "eom"].iter().filter_map(|name| number(name)).collect(),
            marks,
        })
    }

    /// Reads `tokenizer.json`; `config` is the parsed `tokenizer_config.json`.
    pub(super) fn from_json(path: &Path, config: &serde_json::Value) -> Result<Self, ModelError> {
        let text = std::fs::read(path)
            .map_err(|source| ModelError::File { path: path.to_owned(), source })?;
        let invalid = |message: String| ModelError::Tokenizer { message };
        let mut tokenizer =
            Tokenizer::from_bytes(&text).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        tokenizer.set_encode_special_tokens(true);
        let added = tokenizer.get_added_tokens_decoder();
        let marks: HashMap<String, u32> =
            added.iter().map(|(&id, token)| (token.content.clone(), id)).collect();
        let named = |name: &str| {
            let entry = config.get(name)?;
            let text = entry.as_str().or_else(|| entry.get("content")?.as_str())?;
            tokenizer.token_to_id(text)
        };
        let size = tokenizer.get_vocab_size(true) as u32;
        let piece = |token: u32| tokenizer.id_to_token(token).unwrap_or_default();
        let adds_bos = config.get("add_bos_token").and_then(serde_json::Value::as_bool);
        Ok(Self {
            bytes: (0..size).map(|token| bytes_of(&piece(token), &marks)).collect(),
            digest: Sha256::digest(&text).into(),
            bos: named("bos_token"),
            adds_bos: adds_bos.unwrap_or(false),
            ends: named("eos_token").into_iter().collect(),
            marks,
            tokenizer,
        })
    }

    /// The tokens of a text, without any marks.
    ///
    /// # Errors
    /// `Tokenizer` when it does not work on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| ModelError::Tokenizer { message: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text in which marks are written out.
    pub(super) fn encode_marked(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some((at, mark, token)) = self.first_mark(rest) {
            tokens.extend(self.encode(&rest[..at])?);
            tokens.push(token);
            rest = &rest[at + mark.len()..];
        }
        tokens.extend(self.encode(rest)?);
        Ok(tokens)
    }

    fn first_mark(&self, text: &str) -> Option<(usize, &str, u32)> {
        let found = self.marks.iter().filter(|(mark, _)| !mark.is_empty());
        let found = found.filter_map(|(mark, &token)| Some((text.find(mark)?, mark, token)));
        // The longest of those that begin first.
        found
            .min_by_key(|(at, mark, _)| (*at, std::cmp::Reverse(mark.len())))
            .map(|(at, mark, token)| (at, mark.as_str(), token))
    }

    /// The bytes of a token; none for marks. They may be a part of a character.
    pub fn bytes_of(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// SHA-256 of everything that decides what tokens a text becomes.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The number of tokens.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Tokens that end what the model says, as the file names them.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The mark at the start of every prompt, if the model wants one.
    pub(super) fn opening(&self) -> Option<u32> {
        self.bos.filter(|_| self.adds_bos)
    }

    /// The text of the mark that stands for the start of a prompt.
    pub(super) fn bos_text(&self) -> &str {
        let is_bos = |(_, token): &(&String, &u32)| Some(**token) == self.bos;
        self.marks.iter().find(is_bos).map_or("", |(mark, _)| mark)
    }

    /// Whether a token is a mark.
    pub(super) fn is_mark(&self, token: u32) -> bool {
        self.marks.values().any(|&mark| mark == token)
    }
}

fn byte_level(pieces: &[String], merges: &[String], pre: &str) -> Result<Tokenizer, ModelError> {
    let invalid = |message: String| ModelError::Tokenizer { message };
    let pair = |merge: &String| {
        let (left, right) = merge.split_once(' ')?;
        Some((left.to_owned(), right.to_owned()))
    };
    let merges: Option<Vec<_>> = merges.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| invalid("a merge is not a pair".to_owned()))?;
    let vocabulary = pieces.iter().zip(0u32..).map(|(piece, token)| (piece.clone(), token));
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.collect::<Vocab>(), merges)
        .ignore_merges(matches!(pre, "llama3" | "llama-bpe"))
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let mut tokenizer = Tokenizer::new(model);
    // No space is put in front of a text: it is often the middle of a longer one.
    let (split, uses_regex, normalizer): (Option<PreTokenizerWrapper>, _, _) = match pre {
        "gpt-2" | "gpt2" | "default" => (None, true, None),
        "smollm" => (Some(Digits::new(true).into()), true, None),
        "llama3" | "llama-bpe" | "smaug-bpe" => (Some(regex(LLAMA3_SPLIT)?), false, None),
        "qwen2" => (Some(regex(QWEN2_SPLIT)?), false, Some(NormalizerWrapper::from(NFC))),
        other => return Err(invalid(format!("the way `{other}` to split text is not known"))),
    };
    let bytes: PreTokenizerWrapper = ByteLevel::new(false, false, uses_regex).into();
    let steps = split.into_iter().chain([bytes]).collect();
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::from(Sequence::new(steps))));
    tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, false, false)));
    if let Some(normalizer) = normalizer {
        let set = tokenizer.with_normalizer(Some(normalizer));
        set.map_err(|error| invalid(error.to_string()))?;
    }
    Ok(tokenizer)
}

fn regex(pattern: &str) -> Result<PreTokenizerWrapper, ModelError> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map(PreTokenizerWrapper::from)
        .map_err(|error| ModelError::Tokenizer { message: error.to_string() })
}

/// The bytes that a piece of a byte-level vocabulary stands for.
fn bytes_of(piece: &str, marks: &HashMap<String, u32>) -> Vec<u8> {
    if marks.contains_key(piece) {
        return Vec::new();
    }
    piece.chars().flat_map(char_bytes).collect()
}

/// Byte-level vocabularies write each byte as a visible character: those that are visible as they
/// are, the 68 others in their order from U+0100 on.
fn char_bytes(character: char) -> Vec<u8> {
    let code = character as u32;
    let is_visible = |code: u32| matches!(code, 33..=126 | 161..=172 | 174..=255);
    if is_visible(code) {
        return vec![code as u8];
    }
    let hidden = (0..=255u8).filter(|&byte| !is_visible(u32::from(byte)));
    let byte = code.checked_sub(256).and_then(|at| hidden.into_iter().nth(at as usize));
    byte.map_or_else(|| character.to_string().into_bytes(), |byte| vec![byte])
}

fn digest_of(pieces: &[String], merges: &[String], pre: &str) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(pre);
    for list in [pieces, merges] {
        digest.update((list.len() as u64).to_le_bytes());
        for text in list {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
    }
    digest.finalize().into()
}
