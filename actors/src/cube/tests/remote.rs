//! Chats over cubes with a model elsewhere: prompts grow at their end only, and nothing is sent of
//! a memory that is gone.

use memcube_schemas::{ConversationId, ModelId};

use super::*;
use crate::{
    error::Result,
    inference::{
        Finished,
        remote::{
            RemoteError, RemoteFailure, RemoteParts, RemoteSettings,
            scripted::{RemoteCosts, RemoteFault, ScriptedRemote, prompt},
        },
    },
};

struct Chatting {
    world: World,
    server: ScriptedRemote,
}

impl Chatting {
    async fn new(seed: u64) -> Self {
        Self::with_window(seed, 8_192).await
    }

    async fn with_window(seed: u64, window_tokens: usize) -> Self {
        let environment = Environment::scripted(seed);
        let store = Arc::new(InMemoryStore::default());
        let world = World::with_blobs(store, environment, 100, None).await;
        let model = ModelId::new("elsewhere").expect("valid");
        let server = ScriptedRemote::new(model, window_tokens, RemoteCosts::default());
        let settings = RemoteSettings::default();
        let parts = RemoteParts { model: Arc::new(server.clone()), settings };
        world.cubes.serve_remote_model(parts).await.expect("started");
        Self { world, server }
    }

    async fn knowing(&self, id: &str) -> (CubeHandle, Vec<MemoryId>) {
        let cube = self.world.cube(id).await;
        let texts: Vec<String> = (0..12)
            .map(|n| format!("turn {n}: {id} walks in garden number {n} with the greyhound"))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let added = cube.add(said(&texts)).await.expect("added");
        (cube, added.memories.iter().map(|memory| memory.id).collect())
    }

    /// Every prompt that the server got, as one text each.
    fn prompts(&self) -> Vec<String> {
        self.server.asked().iter().map(|asked| prompt(asked)).collect()
    }
}

struct Talk {
    conversation: ConversationId,
    turns: Vec<ChatTurn>,
}

impl Talk {
    fn new(name: &str) -> Self {
        Self { conversation: ConversationId::new(name).expect("valid"), turns: Vec::new() }
    }

    fn request(&self, message: &str) -> ChatRequest {
        let recall = SearchRequest { top_k: 4, ..SearchRequest::new(message) };
        ChatRequest {
            preamble: "You are a friend who remembers everything that was ever said.".into(),
            turns: self.turns.clone(),
            recall: Some(recall),
            ..ChatRequest::new(self.conversation.clone(), message)
        }
    }

    async fn say(&mut self, cube: &CubeHandle, message: &str) -> Result<(ChatOpening, Finished)> {
        let request = self.request(message);
        let mut stream = cube.chat(request.clone()).await?;
        let (text, finished) = stream.collect().await?;
        if let Some(kept) = stream.kept().await {
            kept?;
        }
        self.turns.push(request.message);
        self.turns.push(ChatTurn::new(Role::Assistant, text));
        Ok((stream.opening().clone(), finished))
    }

    fn ahead(&self, memories: &[MemoryId]) -> PreloadRequest {
        PreloadRequest {
            conversation: self.conversation.clone(),
            preamble: self.request("").preamble,
            turns: self.turns.clone(),
            memories: memories.to_vec(),
            ms_max: 60_000,
        }
    }
}

async fn delete(cube: &CubeHandle, id: MemoryId) {
    let selection = Selection::Ids(vec![id]);
    cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
}

#[tokio::test(start_paused = true)]
async fn every_prompt_begins_with_the_whole_prompt_before_it() {
    let chatting = Chatting::new(1).await;
    let (cube, ids) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    for n in 0..6 {
        let message = format!("tell me about garden {n} and the greyhound");
        let (opening, finished) = talk.say(&cube, &message).await.expect("said");
        assert!(opening.memories.iter().any(|memory| memory.was_preloaded) || n == 0);
        let prompts = chatting.prompts();
        let [.., before, last] = prompts.as_slice() else { continue };
        assert!(last.starts_with(before), "turn {n}:\n{before}\n---\n{last}");
        let before = before.len() / scripted_bytes() - 1;
        assert!(finished.reuse.reused() >= before, "turn {n}: {finished:?}");
    }
    // The server knows what it has read and said itself.
    let known = cube.preload(talk.ahead(&[])).await.expect("nothing to do");
    assert_eq!((known.finished.reuse.computed_tokens, known.kept.context), (0, true));
    assert_eq!(chatting.server.asked().len(), 6);
    // What is sent ahead is a prefix as well.
    let ahead = cube.preload(talk.ahead(&ids[8..])).await.expect("read ahead");
    assert!(ahead.kept.context);
    let (_, finished) = talk.say(&cube, "and the last gardens?").await.expect("said");
    let prompts = chatting.prompts();
    let [.., before, ahead, last] = prompts.as_slice() else { panic!("{prompts:?}") };
    assert!(ahead.starts_with(before.as_str()) && last.starts_with(before.as_str()));
    assert!(finished.reuse.reused() * 2 > finished.reuse.computed_tokens, "{finished:?}");
    assert_eq!(chatting.server.asked().iter().filter(|asked| asked.tokens_max == 1).count(), 1);
}

const fn scripted_bytes() -> usize {
    crate::inference::remote::scripted::BYTES_PER_TOKEN
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_changed_is_not_in_the_next_prompt() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let (opening, _) = talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let [first, second, ..] = opening.memories.as_slice() else { panic!("{opening:?}") };
    let (first, second) = (first.source.id, second.source.id);
    let (gone, old) = (cube.get(first).await.expect("it"), cube.get(second).await.expect("it"));
    assert!(chatting.prompts()[0].contains(&gone.text));
    delete(&cube, first).await;
    let text = Some("the greyhound is called Luna".to_owned());
    let change = UpdateRequest { text, ..UpdateRequest::default() };
    cube.update(second, change).await.expect("changed");
    talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let last = chatting.prompts().pop().expect("asked");
    assert!(!last.contains(&gone.text), "{last}");
    assert!(!last.contains(&old.text), "{last}");
    cube.preload(talk.ahead(&[first, second])).await.expect("read ahead");
    let ahead = chatting.prompts().pop().expect("asked");
    assert!(!ahead.contains(&gone.text) && ahead.contains("Luna"), "{ahead}");
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_while_a_request_waits_is_not_sent_and_the_prompt_is_made_again() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let (opening, _) = talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let victim = cube.get(opening.memories[0].source.id).await.expect("it");
    let busy = RemoteError {
        retry_after_ms: Some(5_000),
        ..RemoteError::new(RemoteFailure::Busy, "scripted")
    };
    chatting.server.fail_next([RemoteFault::Refuse(busy)]);
    let (said, ()) = tokio::join!(talk.say(&cube, "go on"), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        delete(&cube, victim.id).await;
    });
    let (opening, _) = said.expect("said");
    assert!(opening.memories.iter().all(|memory| memory.source.id != victim.id));
    let prompts = chatting.prompts();
    assert_eq!(prompts.len(), 3);
    assert!(prompts[1].contains(&victim.text) && !prompts[2].contains(&victim.text));
}

#[tokio::test(start_paused = true)]
async fn a_long_talk_stays_within_the_window_as_the_server_counts() {
    let chatting = Chatting::with_window(1, 700).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let mut left_out = 0;
    for n in 0..30 {
        let message = format!("tell me about garden {n} and whatever the greyhound did there");
        let request = ChatRequest { tokens_max: 60, ..talk.request(&message) };
        let mut stream = cube.chat(request.clone()).await.expect("begun");
        let (text, finished) = stream.collect().await.expect("said");
        stream.kept().await.expect("kept").expect("durable");
        left_out += stream.opening().left_out.len() + stream.opening().turns_left_out;
        let counted = finished.reuse.computed_tokens + finished.reuse.reused();
        assert!(counted + 60 <= 700, "turn {n}: {counted} tokens");
        talk.turns.extend([request.message, ChatTurn::new(Role::Assistant, text)]);
    }
    assert!(left_out > 10, "{left_out}");
}

#[tokio::test(start_paused = true)]
async fn tools_and_further_fields_are_passed_through() {
    let chatting = Chatting::new(1).await;
    let (cube, ids) = chatting.knowing("ann").await;
    let talk = Talk::new("talk");
    let tools = r#"{"tools": [{"type": "function", "function": {"name": "clock"}}]}"#;
    let request = ChatRequest { extra: Some(tools.into()), ..talk.request("what time is it?") };
    cube.chat(request.clone()).await.expect("begun").collect().await.expect("said");
    cube.preload(talk.ahead(&ids)).await.expect("read ahead");
    assert_eq!(chatting.server.asked().len(), 2);
    for asked in chatting.server.asked() {
        assert_eq!(asked.extra.as_deref(), Some(tools), "ahead of an answer as well");
    }
    let refused = cube.chat(ChatRequest { extra: Some("[1]".into()), ..request }).await;
    assert_eq!(refused.expect_err("no object").kind(), ErrorKind::Invalid);
}
