//! From the rows of the state store, which are the truth, to the rows of a table.

use std::collections::BTreeMap;

use memcube_schemas::{
    CubeId, MemoryId, ModelId, TenantId,
    codec::decode,
    keys,
    memory::{MemoryItem, MemoryVector},
};

use crate::{
    cube::recall::{Place, embedding_text, index_terms},
    embedder::{EmbedderHandle, Priority},
    error::Result,
    storage::{
        RangeRead, SharedStore,
        vector_index::{RowChange, VectorRow},
    },
};

/// Rows that one read asks for.
const KEYS_PER_READ: usize = 4_096;

/// A memory as the store holds it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) item: MemoryItem,
    /// Its vector under the model asked for.
    pub(crate) vector: Option<Vec<f32>>,
}

/// Reads memories by their keys; one that is not there is left out.
pub(crate) async fn read_items(
    store: &SharedStore,
    tenant: &TenantId,
    places: &[Place],
) -> Result<BTreeMap<Place, MemoryItem>> {
    let mut found = BTreeMap::new();
    for places in places.chunks(KEYS_PER_READ) {
        let key = |(cube, id): &Place| RangeRead::key(keys::item(tenant, cube, *id));
        let output = store.read(places.iter().map(key).collect()).await?;
        for (place, page) in places.iter().zip(&output.pages) {
            if let Some(entry) = page.entries.first() {
                found.insert(place.clone(), decode(&entry.value)?);
            }
        }
    }
    Ok(found)
}

/// Reads memories together with their vectors under a model; one that is not there is left out.
pub(crate) async fn read_with_vectors(
    store: &SharedStore,
    tenant: &TenantId,
    model: Option<&ModelId>,
    places: &[Place],
) -> Result<BTreeMap<Place, Stored>> {
    let mut found = BTreeMap::new();
    for places in places.chunks(KEYS_PER_READ / 2) {
        let keys = places.iter().flat_map(|(cube, id)| {
            let item = Some(keys::item(tenant, cube, *id));
            let vector = model.map(|model| keys::vector(tenant, cube, model, *id));
            [item, vector].into_iter().flatten().map(RangeRead::key)
        });
        let output = store.read(keys.collect()).await?;
        let per_place = 1 + usize::from(model.is_some());
        for (place, pages) in places.iter().zip(output.pages.chunks(per_place)) {
            let value = |at: usize| pages.get(at).and_then(|page| page.entries.first());
            let Some(item) = value(0) else { continue };
            let vector = match value(1) {
                Some(entry) => Some(decode::<MemoryVector>(&entry.value)?.values),
                None => None,
            };
            found.insert(place.clone(), Stored { item: decode(&item.value)?, vector });
        }
    }
    Ok(found)
}

/// The rows of memories, which are embedded if they have no vector of the model yet: after a change
/// of the model, cubes get their new vectors only when they are used.
pub(crate) async fn rows(
    embedder: Option<&EmbedderHandle>,
    stored: Vec<(CubeId, Stored)>,
) -> Result<Vec<RowChange>> {
    let mut stored: Vec<(CubeId, Stored)> =
        stored.into_iter().filter(|(_, stored)| stored.item.status.is_recalled()).collect();
    if let Some(embedder) = embedder {
        let mut missing: Vec<&mut Stored> = stored
            .iter_mut()
            .map(|(_, stored)| stored)
            .filter(|stored| stored.vector.is_none())
            .collect();
        let texts: Vec<String> =
            missing.iter().map(|stored| embedding_text(&stored.item.text)).collect();
        if !texts.is_empty() {
            let embeddings = embedder.embed(texts, Priority::Bulk).await?;
            for (stored, embedding) in missing.iter_mut().zip(embeddings) {
                stored.vector = Some(embedding.vector);
            }
        }
    }
    let put = |(cube, Stored { item, vector }): (CubeId, Stored)| {
        let terms = index_terms(&item.text);
        RowChange::Put(Box::new(VectorRow::of(&cube, &item, terms, vector)))
    };
    Ok(stored.into_iter().map(put).collect())
}

/// What a table has to change so that it knows these memories as they are now.
pub(crate) async fn changes(
    store: &SharedStore,
    embedder: Option<&EmbedderHandle>,
    tenant: &TenantId,
    places: &[(CubeId, MemoryId)],
) -> Result<Vec<RowChange>> {
    let model = embedder.map(|embedder| embedder.model());
    let mut found = read_with_vectors(store, tenant, model, places).await?;
    let mut changes = Vec::with_capacity(places.len());
    let mut stored = Vec::with_capacity(found.len());
    for place in places {
        match found.remove(place) {
            Some(row) if row.item.status.is_recalled() => stored.push((place.0.clone(), row)),
            Some(_) | None => {
                changes.push(RowChange::Remove { cube: place.0.clone(), id: place.1 });
            }
        }
    }
    changes.extend(rows(embedder, stored).await?);
    Ok(changes)
}
