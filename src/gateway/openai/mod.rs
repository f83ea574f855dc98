//! OpenAI's wire (`/v1/chat/completions`, `/v1/embeddings`, `/v1/models`), for its clients: chats
//! that remember, the embedding model, and what there is of both.
//!
//! Errors are problem+json as elsewhere in `/v1`, and have besides what OpenAI's clients read.

pub(crate) mod chat;
mod chat_request;
mod chat_stream;
pub(crate) mod embeddings;
mod messages;
pub(crate) mod models;

use axum::{
    Router,
    routing::{get, post},
};

use super::Gateway;

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models::list))
        // Names of models may contain slashes.
        .route("/v1/models/{*model}", get(models::read))
}
