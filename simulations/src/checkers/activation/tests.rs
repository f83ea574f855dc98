use memcube_actors::{
    cube::{ChatTurn, UsedMemory},
    inference::{
        BLOCK_TOKENS, Cancel, ChatMessage, Engine, Sampling, Session,
        activation_cache::Holding,
        scripted::{ScriptedCosts, ScriptedEngine, ScriptedSession},
    },
    storage::Mutation,
};
use memcube_schemas::{
    BlobId, BlockKey, ConversationId, Incarnation, NodeId,
    activation::{
        BlockSource, ContextMemory, ContextRecord, ContextSegment, KvBlock, KvBlockBytes,
    },
    codec::encode,
    conversation::Role,
    keys,
};

use super::*;
use crate::{
    checkers::builder::{Scene, said},
    evidence::{Evidence, Heard, Residents},
    marker,
};

const PREAMBLE: &str = "be kind";
const BLOB: BlobId = BlobId([7; 32]);
const KEY: BlockKey = BlockKey([9; 32]);

/// A run in which people talk to a model.
struct Talk {
    scene: Scene,
    engine: ScriptedEngine,
    chats: Vec<ChatRecord>,
    readings: Vec<Reading>,
}

impl Talk {
    fn new() -> Self {
        let engine = ScriptedEngine::new(10_000, 1 << 30, ScriptedCosts::default());
        Self { scene: Scene::new(), engine, chats: Vec::new(), readings: Vec::new() }
    }

    /// The tokens of a prompt.
    fn prompt(&self, memories: &[String], message: &str) -> Vec<Token> {
        let render = |role, pieces: Vec<String>| {
            self.engine.render(&ChatMessage { role, pieces }, false).expect("rendered").tokens
        };
        let mut tokens = render(Role::System, vec![PREAMBLE.to_owned()]);
        if !memories.is_empty() {
            let lines = memories.iter().map(|text| format!("- {text}\n"));
            let heading = ["What you remember:\n".to_owned()];
            tokens.extend(render(Role::System, heading.into_iter().chain(lines).collect()));
        }
        tokens.extend(render(Role::User, vec![message.to_owned()]));
        tokens.extend(self.engine.open_reply());
        tokens
    }

    /// A turn that is asked for and answered out of these memories.
    fn chat(&mut self, message: &str, memories: &[MemoryId]) {
        let texts: Vec<String> = memories.iter().map(|id| self.scene.item(*id).text).collect();
        let invoked = self.scene.moment();
        let tokens = self.prompt(&texts, message);
        let mut session = self.engine.session();
        for chunk in tokens.chunks(BLOCK_TOKENS) {
            session.prefill(chunk, &Cancel::default()).expect("computed");
        }
        self.read(&session, Occasion::Keep);
        let token = session.sample(Sampling::GREEDY, 0).expect("said");
        self.read(&session, Occasion::Reply);
        self.readings.last_mut().expect("read").said.push(token);
        let used = |id: &MemoryId| {
            let revision = 1;
            let source = BlockSource { id: *id, revision };
            UsedMemory { source, was_preloaded: false, is_wanted: true }
        };
        let (tenant, cube) = self.scene.cube.clone();
        self.chats.push(ChatRecord {
            tenant,
            cube,
            preamble: PREAMBLE.to_owned(),
            turns: Vec::new(),
            message: ChatTurn::new(Role::User, message.to_owned()),
            invoked,
            returned: Some(self.scene.moment()),
            heard: Some(Heard {
                text: text_of(&[token]),
                memories: memories.iter().map(used).collect(),
                turns_left_out: 0,
                is_whole: true,
            }),
        });
    }

    fn read(&mut self, session: &ScriptedSession, occasion: Occasion) {
        self.readings.push(Reading {
            at_ms: 5,
            node: NodeId::new("n1").expect("valid"),
            model: self.engine.facts().fingerprint.clone(),
            occasion,
            slots: session.slots().to_vec(),
            ends: session.ends().to_vec(),
            said: Vec::new(),
            is_useless: false,
        });
    }

    fn finish(self) -> Evidence {
        let mut evidence = self.scene.finish();
        evidence.chats = self.chats;
        evidence.readings = self.readings;
        evidence.residents.push(Residents {
            node: NodeId::new("n1").expect("valid"),
            at_ms: 9,
            parked: (10, 20),
            ram: (30, 30),
            open: 10,
            at_rest: true,
            incarnation: Incarnation(1),
            holdings: Vec::new(),
        });
        evidence
    }
}

/// Two tenants whose models read the same, each in its own passes.
fn run() -> Evidence {
    let mut talk = Talk::new();
    let id = talk.scene.add(0, "mk1");
    talk.chat("mk1t0c0 what about it?", &[id]);
    talk.chat("mk2t0c0 and else?", &[id]);
    talk.scene.enter("apex", "ann");
    talk.chat("mk1t0c1 what about it?", &[]);
    talk.finish()
}

fn verdict(evidence: &Evidence) -> Vec<String> {
    said(&check(&Case::read(evidence)))
}

#[test]
fn a_run_in_which_all_is_well_passes() {
    assert_eq!(verdict(&run()), Vec::<String>::new());
}

#[test]
fn what_is_wrong_with_a_session_is_seen() {
    type Spoil = fn(&mut Evidence);
    let table: [(&str, Spoil); 12] = [
        ("n1 at 5 ms: what stands for token 3 of", |all| all.readings[1].slots[3].digest ^= 1),
        ("is not what `scripted-chat@1` computes", |all| all.readings[0].model.tokenizer = [8; 32]),
        ("what stands for token 2 of", |all| all.readings[0].ends.insert(0, 2)),
        ("the engine called useless", |all| all.readings[1].is_useless = true),
        ("what was computed for one of", |all| {
            let (last, pass) = (all.readings.len() - 1, all.readings[0].slots[0].pass);
            all.readings[last].slots[0].pass = pass;
        }),
        ("nobody has said `mk1t0c0 what about it?`", |all| drop(all.chats.remove(0))),
        ("is answered under the instructions [\"be kind\"]", |all| {
            all.chats[0].preamble = "be rude".to_owned();
        }),
        ("was sent", |all| {
            let earlier = ChatTurn::new(Role::User, "earlier".to_owned());
            all.chats[0].turns.push(earlier);
        }),
        ("was heard", |all| all.chats[1].heard.as_mut().expect("heard").text.push('!')),
        ("and its prompt holds [\"acme remembers mk1", |all| {
            all.chats[0].heard.as_mut().expect("heard").memories.clear();
        }),
        ("bytes are kept in RAM, 30 may be", |all| all.residents[0].ram.0 += 1),
        ("sessions of 11 bytes are open, of 10 bytes parked", |all| all.residents[0].open += 1),
    ];
    for (part, spoil) in table {
        let mut evidence = run();
        spoil(&mut evidence);
        let found = verdict(&evidence);
        assert!(found.iter().any(|line| line.contains(part)), "{part} in {found:?}");
    }
}

#[test]
fn a_memory_of_nobody_is_seen() {
    let mut talk = Talk::new();
    let id = talk.scene.add(0, "mk1");
    talk.scene.enter("apex", "ann");
    let (other, text) = (talk.scene.cube.clone(), marker::text("acme", "mk1", 1));
    talk.scene.enter("acme", "ann");
    talk.chat("mk1t0c0 what?", &[id]);
    talk.chats[0].tenant = other.0;
    let found = verdict(&talk.finish());
    let expected = format!("apex/ann: the prompt of `mk1t0c0 what?` holds `{text}`, which the");
    assert!(found.iter().any(|line| line.starts_with(&expected)), "{found:?}");
}

#[test]
fn what_is_gone_is_in_no_prompt_that_is_asked_for_later() {
    for is_later in [false, true] {
        for deletes in [false, true] {
            let mut talk = Talk::new();
            let id = talk.scene.add(0, "mk1");
            talk.chat("mk1t0c0 what?", &[id]);
            let asked = talk.chats[0].invoked;
            if deletes {
                talk.scene.delete(0, id, true);
            } else {
                talk.scene.update(0, id, "mk2");
            }
            talk.chats[0].invoked = if is_later { talk.scene.moment() } else { asked };
            let found = verdict(&talk.finish());
            let is_seen =
                found.iter().any(|line| line.ends_with("its end was acknowledged before"));
            assert_eq!(is_seen, is_later, "{deletes}: {found:?}");
        }
    }
}

/// A cube with a block and a context that contain a memory; `then` may spoil it.
fn kept(then: impl FnOnce(&mut Scene, MemoryId)) -> Evidence {
    let mut talk = Talk::new();
    let id = talk.scene.add(0, "mk1");
    let conversation = ConversationId::new("talk").expect("valid");
    let mut item = talk.scene.item(id);
    item.conversation = Some(conversation.clone());
    let set = talk.scene.set_item(&item);
    talk.scene.commit(vec![set]);
    let tokens = talk.prompt(&[item.text], "hello");
    let mut session = talk.engine.session();
    session.prefill(&tokens, &Cancel::default()).expect("computed");
    let numbers = session.export(0..tokens.len()).expect("inside");
    let checksums: Vec<u32> = numbers.layers.iter().map(|layer| layer.checksum).collect();
    let (tenant, cube) = talk.scene.cube.clone();
    let source = BlockSource { id, revision: 1 };
    let count = u32::try_from(tokens.len()).expect("few");
    let block = KvBlock {
        key: KEY,
        parent: None,
        start: 0,
        tokens: count,
        model: talk.engine.facts().fingerprint.clone(),
        dtype: numbers.dtype,
        bytes: numbers.bytes(),
        checksums: checksums.clone(),
        sources: vec![source],
        conversation: Some(conversation.clone()),
        blob: BLOB,
        stored_at_ms: 0,
    };
    let bytes = KvBlockBytes {
        key: KEY,
        start: 0,
        tokens: count,
        dtype: numbers.dtype,
        checksums,
        layers: numbers.layers.iter().map(|layer| layer.bytes.to_vec()).collect(),
    };
    let memory = ContextMemory { source, tokens: 9, wanted_at: 0 };
    let record = ContextRecord {
        conversation: conversation.clone(),
        model: talk.engine.facts().fingerprint.model.clone(),
        segments: vec![ContextSegment::Memories(vec![memory])],
        sealed: 1,
        turn: 1,
        tokens: 9,
        used_at_ms: 0,
    };
    let set = |key, value| Mutation::Set { key, value };
    talk.scene.commit(vec![
        set(keys::kv_block(&tenant, &cube, KEY), encode(&block)),
        set(keys::context(&tenant, &cube, &conversation), encode(&record)),
    ]);
    then(&mut talk.scene, id);
    let mut evidence = talk.finish();
    let mut object = encode(&bytes);
    object.extend([0; 16]);
    evidence.contents.insert(format!("blobs/{tenant}/07/{BLOB}"), object);
    evidence
}

#[test]
fn what_an_owner_holds_of_memories_that_are_gone_is_seen() {
    for (incarnation, deletes, is_seen) in [(1, false, false), (1, true, true), (2, true, false)] {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        if deletes {
            scene.delete(0, id, false);
        }
        let (tenant, cube) = scene.cube.clone();
        let mut evidence = scene.finish();
        let memories = BTreeSet::from([id]);
        evidence.residents.push(Residents {
            node: NodeId::new("n1").expect("valid"),
            at_ms: 1_000,
            parked: (0, 0),
            ram: (0, 0),
            open: 0,
            at_rest: true,
            incarnation: Incarnation(incarnation),
            holdings: vec![Holding { tenant, cube, memories, conversation: None }],
        });
        let found = verdict(&evidence);
        let expected = format!("n1 at rest: it holds something of {id}");
        assert_eq!(found.iter().any(|line| line.starts_with(&expected)), is_seen, "{found:?}");
    }
}

fn rewritten(scene: &mut Scene, change: impl FnOnce(&mut KvBlock)) {
    let key = keys::kv_block(&scene.cube.0, &scene.cube.1, KEY);
    let value = scene.evidence.rows[&key].value.clone();
    let mut block: KvBlock = memcube_schemas::codec::decode(&value).expect("a block");
    change(&mut block);
    scene.commit(vec![Mutation::Set { key, value: encode(&block) }]);
}

#[test]
fn rows_and_objects_that_are_wrong_are_seen() {
    type Spoil = fn(&mut Scene, MemoryId);
    let table: [(&str, Spoil); 8] = [
        ("leaves block 0909", |scene, id| scene.update(0, id, "mk2")),
        ("leaves the context of `talk`, which contains", |scene, id| scene.delete(0, id, false)),
        ("deletes something of `talk`, and leaves block", |scene, id| scene.delete(0, id, false)),
        ("deletes something of `talk`, and leaves its context", |scene, id| {
            scene.delete(0, id, true);
        }),
        ("without the one before it", |scene, _| {
            rewritten(scene, |block| block.parent = Some(BlockKey([1; 32])));
        }),
        ("and its row does not say so", |scene, _| rewritten(scene, |block| block.sources.clear())),
        ("behind a turn of no conversation", |scene, _| {
            rewritten(scene, |block| block.conversation = None);
        }),
        ("does not hold what `scripted-chat@1` computes", |scene, _| {
            rewritten(scene, |block| block.model.adapter = Some([1; 32]));
        }),
    ];
    assert_eq!(verdict(&kept(|_, _| {})), Vec::<String>::new());
    for (part, spoil) in table {
        let found = verdict(&kept(spoil));
        assert!(found.iter().any(|line| line.contains(part)), "{part} in {found:?}");
    }
}

#[test]
fn what_is_computed_ahead_is_of_its_cube() {
    let mut talk = Talk::new();
    let id = talk.scene.add(0, "mk1");
    talk.chat("mk1t0c0 what about it?", &[id]);
    let texts = [talk.scene.item(id).text, "somebody else's".to_owned()];
    for (count, expected) in [(1, 0), (2, 1)] {
        let mut tokens = talk.prompt(&texts[..count], "mk1t0c0 what about it?");
        tokens.truncate(tokens.len() - talk.engine.open_reply().len());
        let mut session = talk.engine.session();
        for chunk in tokens.chunks(BLOCK_TOKENS) {
            session.prefill(chunk, &Cancel::default()).expect("computed");
        }
        talk.read(&session, Occasion::Keep);
        let scene = std::mem::replace(&mut talk.scene, Scene::new());
        let mut evidence = scene.finish();
        evidence.chats.clone_from(&talk.chats);
        evidence.readings.clone_from(&talk.readings);
        let told = verdict(&evidence);
        assert_eq!(told.len(), expected, "{told:?}");
        assert!(told.iter().all(|what| what.contains("which never held it")), "{told:?}");
        let id = talk.scene.add(0, "mk1");
        assert_eq!(talk.scene.item(id).text, texts[0]);
    }
}
