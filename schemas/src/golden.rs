//! One byte file for every stored type and format version, under `golden/`. What a release wrote,
//! every later one must read: a file here is never changed, only added to when a format version is
//! raised.

use std::{fmt::Debug, fs, path::PathBuf, sync::Arc};

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};

use crate::{
    activation::{
        BlockKey, BlockSource, ContextMemory, ContextRecord, ContextSegment, KvBlock, KvBlockBytes,
        KvDtype, ModelFingerprint,
    },
    backup::{
        BackupApiKey, BackupCube, BackupManifest, BackupPart, BackupRow, LeftOut, PartContents,
        PartRef, RowChange,
    },
    blob::{BlobId, BlobRecord, BlobState},
    call::{ArmScores, CubeAnswer, CubeCall, Hit, RecallRequest, SearchOutcome, SearchRequest},
    codec::{Stored, decode, encode},
    conversation::Role,
    cube::{ApiKeyRecord, CubeManifest, Ownership, RequestRecord, SnapshotRef},
    feed::{FeedChange, FeedMark, FeedRecord, ItemChange},
    gate::SchemaGate,
    ids::{
        ConversationId, CubeId, Epoch, Incarnation, MemoryId, ModelId, NodeId, Stamp, TenantId,
        UserId, Version,
    },
    memory::{
        ChangeReason, MemoryItem, MemoryKind, MemoryRevision, MemoryStatus, MemoryVector,
        SourceTurn,
    },
    node::{NodeRecord, NodeState},
    peer::{PeerAnswer, PeerBody, PeerCall, PeerFrame},
    predictor::PredictorRecord,
    snapshot::{CubeSnapshot, Section, SectionKind, TailRecord},
};

/// Set to write the files of a new format version.
const WRITE: &str = "MEMCUBE_WRITE_GOLDEN";

fn check<T>(value: &T)
where
    T: Stored
        + Archive
        + Debug
        + PartialEq
        + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let name = T::NAME.replace(' ', "_").to_lowercase();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/golden")
        .join(format!("{name}.v{}.bin", T::FORMAT));
    if std::env::var_os(WRITE).is_some() && !path.exists() {
        fs::write(&path, encode(value)).expect("the golden file is written");
    }
    let golden = fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; set `{WRITE}=1` once to write it", path.display())
    });
    assert_eq!(&decode::<T>(&golden).expect("it is readable"), value, "{name}");
    assert_eq!(encode(value), golden, "{name}: the layout changed, raise its format version");
    for damaged in damages(&golden) {
        assert!(decode::<T>(&damaged).is_err(), "{name}: damage was not seen");
    }
}

/// The same bytes, cut and flipped at many places.
fn damages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let step = (bytes.len() / 64).max(1);
    let cut = (0..bytes.len()).step_by(step).map(|length| bytes[..length].to_vec());
    let flip = (0..bytes.len()).step_by(step).map(|place| {
        let mut damaged = bytes.to_vec();
        damaged[place] ^= 0x40;
        damaged
    });
    cut.chain(flip).collect()
}

fn item() -> MemoryItem {
    MemoryItem {
        id: MemoryId::from_parts(1_683_554_160_000, 42),
        kind: MemoryKind::Episode,
        status: MemoryStatus::Activated,
        text: "[8 May 2023] Ann: I ran yesterday (7 May 2023).".to_owned(),
        speaker: Some("Ann".to_owned()),
        role: Role::User,
        said_at_ms: Some(1_683_554_160_000),
        learned_at_ms: 1_700_000_000_000,
        updated_at_ms: 1_700_000_000_001,
        conversation: Some(ConversationId::new("session 1").expect("valid")),
        previous: Some(MemoryId::from_parts(1_683_554_100_000, 41)),
        part: Some((1, 2)),
        tags: vec!["sport".to_owned()],
        info: "{\"mood\":\"good\"}".to_owned(),
        sources: vec![SourceTurn {
            role: Role::User,
            speaker: Some("Ann".to_owned()),
            chat_time: Some("2023-05-08T13:56:00Z".to_owned()),
            message_id: Some("D1:1".to_owned()),
            content: "I ran yesterday.".to_owned(),
        }],
        occurrences: 2,
        tokens: 14,
        revision: 3,
        version: Version(7),
    }
}

#[test]
fn what_was_once_written_stays_readable() {
    check(&item());
    check(&MemoryRevision {
        former: item(),
        changed_at_ms: 1_700_000_000_002,
        changed_by: "key of Ann".to_owned(),
        reason: ChangeReason::Deleted,
        version: Version(8),
    });
    check(&MemoryVector { values: vec![0.6, -0.8, 0.0] });
    check(&CubeManifest {
        id: CubeId::new("ann").expect("valid"),
        name: "Ann's memory".to_owned(),
        owner: Some(UserId::new("user-7").expect("valid")),
        created_at_ms: 1_700_000_000_000,
        updated_at_ms: 1_700_000_000_003,
        version: Version(9),
        items: 12,
        embedder: Some(ModelId::new("minilm-l6-v2@53aa5117").expect("valid")),
        snapshot: Some(SnapshotRef { blob: BlobId([7; 32]), version: Version(5) }),
    });
    check(&BlobRecord { state: BlobState::Live, bytes: 1 << 20, at_ms: 1_700_000_000_004 });
    check(&CubeSnapshot {
        cube: CubeId::new("ann").expect("valid"),
        version: Version(9),
        embedder: Some(ModelId::new("minilm-l6-v2@53aa5117").expect("valid")),
        dimensions: 384,
        items: 12,
        sections: vec![Section { kind: SectionKind::Items, bytes: 4_096, checksum: 0x0102_0304 }],
    });
    check(&TailRecord { items: vec![MemoryId::from_parts(1, 1), MemoryId::from_parts(2, 2)] });
    check(&SchemaGate { current: 3, min_reader: 1, min_writer: 2 });
    check(&FeedMark { stamp: Stamp::end_of(Version(11)) });
    check(&Ownership {
        epoch: Epoch(3),
        node: NodeId::new("node-1").expect("valid"),
        incarnation: Incarnation(0x1122_3344_5566_7788),
    });
    check(&ApiKeyRecord {
        tenant: TenantId::new("acme").expect("valid"),
        name: "first key".to_owned(),
        created_at_ms: 1_700_000_000_000,
    });
    check(&RequestRecord {
        fingerprint: 0x1234_5678_9abc_def0,
        added: vec![(MemoryId::from_parts(1, 1), false), (MemoryId::from_parts(2, 2), true)],
        version: Version(10),
    });
    check(&NodeRecord {
        node: NodeId::new("node-1").expect("valid"),
        incarnation: Incarnation(7),
        beat: 12,
        state: NodeState::Alive,
        address: "10.0.0.1:7710".to_owned(),
    });
    check(&feed_record());
    check(&backup_manifest());
    check(&BackupPart { number: 2, contents: PartContents::Rows(backup_rows()) });
    check(&frame(PeerBody::Call(PeerCall::Cube {
        tenant: TenantId::new("acme").expect("valid"),
        principal: "key of Ann".to_owned(),
        cube: CubeId::new("ann").expect("valid"),
        call: CubeCall::Search(Box::new(RecallRequest {
            request: SearchRequest::new("where does Ann run"),
            vector: Some(vec![0.6, -0.8]),
        })),
        insist: false,
    })));
}

#[test]
fn what_was_once_written_of_activation_memory_stays_readable() {
    check(&kv_block());
    check(&KvBlockBytes {
        key: BlockKey([2; 32]),
        start: 256,
        tokens: 71,
        dtype: KvDtype::F16,
        checksums: vec![0x0102_0304],
        layers: vec![vec![1, 2, 3, 4]],
    });
    check(&context_record());
}

#[test]
fn answers_of_other_nodes_come_back_as_they_were_sent() {
    let hit = Hit { item: Arc::new(item()), relativity: 0.5, scores: ArmScores::default() };
    let found = SearchOutcome { hits: vec![hit], version: Version(9), tokens: 14, confidence: 0.7 };
    let sent = frame(PeerBody::Answer(PeerAnswer::Cube(CubeAnswer::Found(found))));
    assert_eq!(decode::<PeerFrame>(&encode(&sent)), Ok(sent));
}

fn feed_record() -> FeedRecord {
    FeedRecord {
        cube: CubeId::new("ann").expect("valid"),
        epoch: Epoch(3),
        version: Version(9),
        at_ms: 1_700_000_000_004,
        change: FeedChange::Items(vec![(MemoryId::from_parts(1, 1), ItemChange::Updated, 2)]),
    }
}

fn kv_block() -> KvBlock {
    KvBlock {
        key: BlockKey([2; 32]),
        parent: Some(BlockKey([1; 32])),
        start: 256,
        tokens: 71,
        model: ModelFingerprint {
            model: ModelId::new("smollm2-135m-instruct@1f3a77c0").expect("valid"),
            tokenizer: [3; 32],
            adapter: Some([4; 32]),
            rope: "interleaved base=100000".to_owned(),
            dtype: KvDtype::F32,
            layout: "k,v [3,tokens,64] v1 x30".to_owned(),
        },
        dtype: KvDtype::F16,
        bytes: 1_635_840,
        checksums: vec![0x0102_0304, 0x0506_0708],
        sources: vec![BlockSource { id: MemoryId::from_parts(1, 1), revision: 3 }],
        conversation: Some(ConversationId::new("session 1").expect("valid")),
        blob: BlobId([7; 32]),
        stored_at_ms: 1_700_000_000_005,
    }
}

fn context_record() -> ContextRecord {
    let source = BlockSource { id: MemoryId::from_parts(1, 1), revision: 3 };
    ContextRecord {
        conversation: ConversationId::new("session 1").expect("valid"),
        model: ModelId::new("smollm2-135m-instruct@1f3a77c0").expect("valid"),
        segments: vec![
            ContextSegment::Preamble([5; 16]),
            ContextSegment::Memories(vec![ContextMemory { source, tokens: 14, wanted_at: 2 }]),
            ContextSegment::Turn(Role::User, [6; 16]),
        ],
        sealed: 2,
        turn: 3,
        tokens: 327,
        used_at_ms: 1_700_000_000_006,
    }
}

fn backup_manifest() -> BackupManifest {
    let part = |byte| PartRef { bytes: 1 << 20, sha256: [byte; 32] };
    BackupManifest {
        run: 0x1122_3344_5566_7788,
        source: "embedded".to_owned(),
        memcube: "0.3.0".to_owned(),
        tenant: Some(TenantId::new("acme").expect("valid")),
        is_selection: true,
        started_at_ms: 1_700_000_000_000,
        finished_at_ms: 1_700_000_000_001,
        started: Version(11),
        finished: Version(12),
        cubes: 2,
        rows: 3,
        api_keys: 1,
        row_parts: vec![part(1), part(2)],
        cube_parts: vec![part(3)],
        key_parts: vec![part(4)],
        left_out: vec![LeftOut {
            tenant: TenantId::new("acme").expect("valid"),
            cube: CubeId::new("bob").expect("valid"),
            reason: "damaged".to_owned(),
        }],
    }
}

fn backup_rows() -> Vec<BackupRow> {
    let id = MemoryId::from_parts(1, 1);
    let value = vec![1, 2, 3];
    let model = ModelId::new("minilm-l6-v2@53aa5117").expect("valid");
    let request = crate::ids::RequestId::new("again").expect("valid");
    let changes = [
        RowChange::Item { id, value: value.clone() },
        RowChange::History { id, revision: 3, value: value.clone() },
        RowChange::Vector { model, id, value: value.clone() },
        RowChange::Request { id: request, value },
        RowChange::ForgetMemory(id),
        RowChange::ForgetVectors,
    ];
    changes.into_iter().map(|change| BackupRow { scan: 7, change }).collect()
}

#[test]
fn what_a_predictor_learned_stays_readable() {
    check(&PredictorRecord {
        generation: 2,
        inputs: "last_turn constant".to_owned(),
        weights: [vec![0.25, -5.5], vec![0.75, -5.0]],
        turns: 41,
        at_ms: 1_700_000_000_005,
    });
}

#[test]
fn every_kind_of_backup_part_comes_back_as_it_was_written() {
    let cube = BackupCube {
        tenant: TenantId::new("acme").expect("valid"),
        cube: CubeId::new("ann").expect("valid"),
        manifest: vec![1, 2],
        scan: 7,
        rows: 6,
        first_part: 1,
        last_part: 2,
    };
    let key = BackupApiKey { hash: [7; 32], value: vec![3] };
    for contents in [PartContents::Cubes(vec![cube]), PartContents::ApiKeys(vec![key])] {
        let part = BackupPart { number: 1, contents };
        assert_eq!(decode::<BackupPart>(&encode(&part)), Ok(part));
    }
}

#[test]
fn the_feed_of_0_2_0_is_still_read() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/golden/feed_record.v1.bin");
    let bytes = fs::read(path).expect("the golden file is there");
    assert_eq!(decode::<FeedRecord>(&bytes), Ok(feed_record()));
}

#[test]
fn the_ownership_row_of_0_1_0_is_still_read() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/golden/cube_ownership.v1.bin");
    let bytes = fs::read(path).expect("the golden file is there");
    let read = decode::<Ownership>(&bytes).expect("it is readable");
    let node = NodeId::new("node-1").expect("valid");
    assert_eq!(read, Ownership { epoch: Epoch(3), node, incarnation: Incarnation(0) });
    let mut unknown = bytes;
    unknown[3] = 9;
    let refused = decode::<Ownership>(&unknown).expect_err("no such version");
    assert!(refused.reason.contains("version 9"), "{refused}");
}

fn frame(body: PeerBody) -> PeerFrame {
    PeerFrame {
        from: NodeId::new("node-1").expect("valid"),
        from_incarnation: Incarnation(7),
        to_incarnation: Incarnation(8),
        call: 42,
        body,
    }
}
