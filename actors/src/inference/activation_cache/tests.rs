//! Blocks as they are stored: whatever is not what its row means is not used.

use bytes::Bytes;
use memcube_schemas::{
    BlobId, BlockKey,
    activation::{KvBlock, KvBlockBytes, KvDtype},
    codec::{checksum, encode},
};

use super::{chain::tests::model, stored::check};

fn row(layers: &[Vec<u8>]) -> KvBlock {
    KvBlock {
        key: BlockKey([1; 32]),
        parent: None,
        start: 256,
        tokens: 1,
        model: model(),
        dtype: KvDtype::F32,
        bytes: 8,
        checksums: layers.iter().map(|layer| checksum(layer)).collect(),
        sources: Vec::new(),
        conversation: None,
        blob: BlobId([2; 32]),
        stored_at_ms: 0,
    }
}

fn bytes(layers: Vec<Vec<u8>>) -> KvBlockBytes {
    KvBlockBytes {
        key: BlockKey([1; 32]),
        start: 256,
        tokens: 1,
        dtype: KvDtype::F32,
        checksums: layers.iter().map(|layer| checksum(layer)).collect(),
        layers,
    }
}

fn stored(bytes: &KvBlockBytes) -> Bytes {
    Bytes::from(encode(bytes))
}

#[test]
fn a_block_that_is_not_what_its_row_means_is_not_used() {
    let layers = vec![vec![0, 0, 128, 63], vec![0, 0, 0, 64]];
    let row = row(&layers);
    let (numbers, is_exact) =
        check(stored(&bytes(layers.clone())), &row, KvDtype::F32).expect("as it should be");
    assert!(is_exact);
    assert_eq!(numbers.layers[1].bytes, Bytes::from(layers[1].clone()));
    type Change = fn(&mut KvBlockBytes);
    let table: [(&str, Change); 8] = [
        ("another block", |bytes| bytes.key = BlockKey([9; 32])),
        ("another place", |bytes| bytes.start = 0),
        ("another length", |bytes| bytes.tokens = 2),
        ("another dtype", |bytes| bytes.dtype = KvDtype::Q8),
        ("a damaged layer", |bytes| bytes.layers[1][0] ^= 1),
        ("other checksums", |bytes| bytes.checksums[0] ^= 1),
        ("a layer less", |bytes| drop(bytes.layers.pop())),
        ("layers of another block", |bytes| {
            bytes.layers.reverse();
            bytes.checksums.reverse();
        }),
    ];
    for (name, change) in table {
        let mut changed = bytes(layers.clone());
        change(&mut changed);
        assert!(check(stored(&changed), &row, KvDtype::F32).is_none(), "{name}");
    }
    assert!(check(stored(&bytes(layers.clone())), &row, KvDtype::F16).is_none(), "no such numbers");
    let odd = Bytes::from([&[0], &*stored(&bytes(layers))].concat()).slice(1..);
    assert!(check(odd, &row, KvDtype::F32).is_some(), "wherever it lies in memory");
    assert!(check(Bytes::from_static(b"mc"), &row, KvDtype::F32).is_none());
}
