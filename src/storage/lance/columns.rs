//! Rows of a table as Arrow columns, and back.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch,
    StringArray, UInt32Array,
    builder::{FixedSizeListBuilder, Float32Builder, ListBuilder, StringBuilder},
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use memcube_actors::storage::vector_index::{Candidate, VectorRow};
use memcube_schemas::{CubeId, MemoryId, Stamp};

use super::filter;

/// The key of the row that carries the watermark. No memory has it.
pub(super) const MARK_KEY: &str = "";
/// The column of vectors. A table has none before its first row with one.
pub(super) const VECTOR: &str = "vector";

/// A row to write.
pub(super) enum Row<'a> {
    /// A memory.
    Memory(&'a VectorRow),
    /// Up to where the table is whole; `None` while it is being built.
    Mark(Option<Stamp>),
}

impl Row<'_> {
    fn memory(&self) -> Option<&VectorRow> {
        match self {
            Self::Memory(row) => Some(row),
            Self::Mark(_) => None,
        }
    }
}

/// Names a memory in its table: 32 hexadecimal digits, then the cube.
pub(super) fn key(cube: &CubeId, id: MemoryId) -> String {
    let mut key = String::with_capacity(32 + cube.as_str().len());
    for byte in id.as_bytes() {
        key.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        key.push(char::from_digit(u32::from(byte & 0xf), 16).unwrap_or('0'));
    }
    key.push_str(cube.as_str());
    key
}

/// Reads a key back.
fn place(key: &str) -> Option<(CubeId, MemoryId)> {
    let (id, cube) = key.split_at_checked(32)?;
    Some((CubeId::new(cube).ok()?, id.parse().ok()?))
}

/// The columns of a table, with vectors of so many values, or without vectors.
pub(super) fn schema(dimensions: Option<usize>) -> SchemaRef {
    let text = |name: &str, is_nullable: bool| Field::new(name, DataType::Utf8, is_nullable);
    let tag = Arc::new(Field::new("item", DataType::Utf8, true));
    let mut fields = vec![
        text("key", false),
        text("cube", false),
        Field::new("revision", DataType::UInt32, false),
        text("terms", false),
        text("kind", true),
        text("conversation", true),
        Field::new("tags", DataType::List(tag), true),
        Field::new("said_at_ms", DataType::Int64, true),
        text("mark", true),
    ];
    fields.extend(dimensions.map(vector_field));
    Arc::new(Schema::new(fields))
}

/// The column of vectors.
pub(super) fn vector_field(dimensions: usize) -> Field {
    let value = Arc::new(Field::new("item", DataType::Float32, true));
    let dimensions = i32::try_from(dimensions).unwrap_or(i32::MAX);
    Field::new(VECTOR, DataType::FixedSizeList(value, dimensions), true)
}

/// How many values the vectors of a table have; `None` while it has no column for them.
pub(super) fn dimensions(schema: &Schema) -> Option<usize> {
    let column = schema.field_with_name(VECTOR).ok()?;
    let DataType::FixedSizeList(_, values) = column.data_type() else { return None };
    usize::try_from(*values).ok()
}

/// Rows as columns. A vector of another length counts as none.
pub(super) fn batch(
    rows: &[Row<'_>],
    dimensions: Option<usize>,
) -> Result<RecordBatch, ArrowError> {
    let texts = |text: &dyn Fn(&VectorRow) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| row.memory().and_then(text)).collect::<StringArray>())
    };
    let some = |text: &dyn Fn(&VectorRow) -> String| -> ArrayRef {
        let texts = rows.iter().map(|row| Some(row.memory().map(text).unwrap_or_default()));
        Arc::new(texts.collect::<StringArray>())
    };
    let revisions = rows.iter().map(|row| row.memory().map_or(0, |row| row.revision));
    let said = rows.iter().map(|row| row.memory().and_then(|row| row.said_at_ms));
    let marks = rows.iter().map(|row| match row {
        Row::Mark(Some(stamp)) => Some(stamp.to_string()),
        Row::Mark(None) | Row::Memory(_) => None,
    });
    let mut columns: Vec<ArrayRef> = vec![
        some(&|row| key(&row.cube, row.id)),
        some(&|row| row.cube.to_string()),
        Arc::new(UInt32Array::from_iter_values(revisions)),
        some(&|row| row.terms.clone()),
        texts(&|row| Some(filter::kind(row.kind).to_owned())),
        texts(&|row| row.conversation.as_ref().map(ToString::to_string)),
        Arc::new(tags(rows)),
        Arc::new(said.collect::<Int64Array>()),
        Arc::new(marks.collect::<StringArray>()),
    ];
    if let Some(dimensions) = dimensions {
        columns.push(Arc::new(vectors(rows, dimensions)));
    }
    RecordBatch::try_new(schema(dimensions), columns)
}

fn tags(rows: &[Row<'_>]) -> ListArray {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in rows {
        if let Some(row) = row.memory() {
            row.tags.iter().for_each(|tag| lists.values().append_value(tag));
        }
        lists.append(row.memory().is_some());
    }
    lists.finish()
}

fn vectors(rows: &[Row<'_>], dimensions: usize) -> FixedSizeListArray {
    let length = i32::try_from(dimensions).unwrap_or(i32::MAX);
    let values = Float32Builder::with_capacity(rows.len() * dimensions);
    let mut vectors = FixedSizeListBuilder::new(values, length);
    for row in rows {
        let vector = row.memory().and_then(|row| row.vector.as_ref());
        match vector.filter(|vector| vector.len() == dimensions) {
            Some(vector) => vectors.values().append_slice(vector),
            None => vectors.values().append_nulls(dimensions),
        }
        vectors.append(vector.is_some_and(|vector| vector.len() == dimensions));
    }
    vectors.finish()
}

/// The watermark in what was read of its row.
pub(super) fn mark(batches: &[RecordBatch]) -> Option<Stamp> {
    let marks = batches.iter().filter_map(|batch| column::<StringArray>(batch, "mark"));
    let mut marks = marks.flat_map(|marks| marks.iter().flatten());
    marks.next().and_then(|mark| mark.parse().ok())
}

/// What an arm found.
pub(super) fn candidates(batches: &[RecordBatch], query: Option<&[f32]>) -> Vec<Candidate> {
    batches.iter().flat_map(|batch| candidates_of(batch, query)).collect()
}

fn candidates_of(batch: &RecordBatch, query: Option<&[f32]>) -> Vec<Candidate> {
    let (Some(keys), Some(revisions)) =
        (column::<StringArray>(batch, "key"), column::<UInt32Array>(batch, "revision"))
    else {
        return Vec::new();
    };
    let distances = column::<Float32Array>(batch, "_distance");
    let scores = column::<Float32Array>(batch, "_score");
    let vectors = column::<FixedSizeListArray>(batch, VECTOR);
    let candidate = |row: usize| {
        let (cube, id) = place(keys.value(row))?;
        let value = |values: &Float32Array| values.is_valid(row).then(|| values.value(row));
        // Lance's distance by dot product is one minus that product.
        let near = distances.and_then(value).map(|distance| 1.0 - distance);
        let product = || {
            let vector = vectors.filter(|vectors| vectors.is_valid(row))?.value(row);
            let vector = vector.as_any().downcast_ref::<Float32Array>()?.values().to_vec();
            Some(vector.iter().zip(query?).map(|(left, right)| left * right).sum())
        };
        // A row without a vector is no neighbour of anything.
        if distances.is_some() && near.is_none() {
            return None;
        }
        Some(Candidate {
            cube,
            id,
            revision: revisions.value(row),
            dense: near.or_else(product),
            lexical: scores.and_then(value),
        })
    };
    (0..batch.num_rows()).filter_map(candidate).collect()
}

fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Option<&'a T> {
    batch.column_by_name(name)?.as_any().downcast_ref()
}
