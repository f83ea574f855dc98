//! memcube inside a program: no server, no port, no key.
//!
//! Run it with `cargo run --example embedded`.

#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use anyhow::Result;
use memcube::{
    Node, Settings, TenantContext,
    schemas::{
        CubeId, TenantId,
        conversation::{Message, Role},
    },
    settings::{EmbedderKind, StoreKind},
};
use memcube_actors::cube::{AddRequest, SearchRequest};

#[tokio::main]
async fn main() -> Result<()> {
    // In RAM and without a model, so that nothing is downloaded and nothing stays behind.
    let mut settings = Settings::default();
    settings.store.kind = StoreKind::InMemory;
    settings.embedder.kind = EmbedderKind::None;
    let node = Box::pin(Node::builder().with_settings(settings).start()).await?;

    // Whoever embeds memcube vouches for the caller; over HTTP the API key does.
    let caller = TenantContext::authenticated(TenantId::new("acme")?, "embedded example");
    let cube = node.cubes().ensure(&caller, CubeId::new("ann")?).await?;

    let said = |content: &str| Message {
        role: Role::User,
        speaker: Some("Ann".to_owned()),
        content: content.to_owned(),
        chat_time: Some("2024-05-08T10:00:00Z".to_owned()),
        message_id: None,
    };
    let messages = vec![
        said("I adopted a greyhound yesterday. He is called Pixel!"),
        said("The train to Porto was late again."),
    ];
    // Durable, as far as the store is, and findable as soon as it returns.
    cube.add(AddRequest { messages, ..AddRequest::default() }).await?;

    let question = SearchRequest::new("When did Ann adopt a greyhound?");
    let found = cube.search(SearchRequest { top_k: 1, ..question }).await?;
    for hit in &found.hits {
        println!("{:.2}  {}", hit.relativity, hit.item.text);
    }
    node.shut_down().await;
    Ok(())
}
