//! Options that several commands share, and how they override the settings.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::settings::{EmbedderKind, InferenceKind, Settings};

const NODE: &str = "Node";
const SERVER: &str = "Server to talk to";

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Options {
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Settings file (TOML).
    #[arg(long, global = true, value_name = "FILE", help_heading = NODE)]
    pub(crate) config: Option<PathBuf>,
    /// Directory that holds everything [default: `~/.memcube`].
    #[arg(long, global = true, value_name = "DIR", help_heading = NODE)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Directory of the embedding model [default: `~/.cache/memcube/models/minilm-l6-v2`].
    #[arg(long, global = true, value_name = "DIR", help_heading = NODE)]
    pub(crate) model_dir: Option<PathBuf>,
    /// Model that embeds; with `none`, recall finds words, not meanings.
    #[arg(long, global = true, value_name = "MODEL", help_heading = NODE)]
    pub(crate) embedder: Option<EmbedderChoice>,
    /// Model that answers; without one, memories are kept and found only [default: none].
    #[arg(long, global = true, value_name = "MODEL", help_heading = NODE)]
    pub(crate) language_model: Option<LanguageModelChoice>,
}

/// An embedder on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EmbedderChoice {
    /// all-MiniLM-L6-v2 on this machine.
    Minilm,
    /// No model.
    None,
}

/// A language model on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LanguageModelChoice {
    /// The model of `[inference]` on this machine; SmolLM2-135M-Instruct if none is named.
    Local,
    /// The model behind the server at `inference.url`, which speaks OpenAI's chat completions.
    #[value(name = "openai")]
    OpenAi,
    /// No model.
    None,
}

/// Which server a command talks to.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerArgs {
    /// Address of a server, such as `http://127.0.0.1:7700`; if left out, the one that runs on the
    /// data directory, or none at all.
    #[arg(long, env = "MEMCUBE_URL", value_name = "URL", help_heading = SERVER)]
    pub(crate) server: Option<String>,
    /// API key of the server.
    #[arg(
        long,
        env = "MEMCUBE_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help_heading = SERVER
    )]
    pub(crate) api_key: Option<String>,
}

impl ServerArgs {
    /// The address, if one is given; an empty variable is none.
    pub(crate) fn server(&self) -> Option<&str> {
        self.server.as_deref().map(str::trim).filter(|server| !server.is_empty())
    }

    /// The key, if one is given; an empty variable is none.
    pub(crate) fn api_key(&self) -> Option<&str> {
        given(self.api_key.as_deref())
    }
}

/// What stands in an option or variable, unless that is nothing.
pub(crate) fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

impl Options {
    /// The settings from file and environment, with what the command line overrides.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::load(self.config.as_deref())?;
        if let Some(data_dir) = &self.data_dir {
            settings.store.data_dir.clone_from(data_dir);
        }
        if let Some(model_dir) = &self.model_dir {
            settings.embedder.model_dir.clone_from(model_dir);
        }
        match self.embedder {
            Some(EmbedderChoice::Minilm) => settings.embedder.kind = EmbedderKind::Minilm,
            Some(EmbedderChoice::None) => settings.embedder.kind = EmbedderKind::None,
            None => {}
        }
        match self.language_model {
            Some(LanguageModelChoice::Local) => settings.inference.kind = InferenceKind::Local,
            Some(LanguageModelChoice::OpenAi) => settings.inference.kind = InferenceKind::OpenAi,
            Some(LanguageModelChoice::None) => settings.inference.kind = InferenceKind::None,
            None => {}
        }
        Ok(settings)
    }
}
