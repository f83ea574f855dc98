//! Conditions as the SQL that Lance filters by.

use memcube_actors::storage::vector_index::SearchSpec;
use memcube_schemas::{CubeId, call::SearchFilter, memory::MemoryKind};

/// A text as a literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether a column has one of these texts.
pub(super) fn is_one_of<'a>(column: &str, texts: impl Iterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.map(quoted).collect();
    match texts.as_slice() {
        [] => "false".to_owned(),
        [only] => format!("{column} = {only}"),
        several => format!("{column} IN ({})", several.join(", ")),
    }
}

/// The rows of these cubes.
pub(super) fn of_cubes<'a>(cubes: impl Iterator<Item = &'a CubeId>) -> String {
    is_one_of("cube", cubes.map(CubeId::as_str))
}

/// What a row has to meet; `None` when any will do.
pub(super) fn of(spec: &SearchSpec) -> Option<String> {
    let SearchFilter { tags, conversation, kinds, said_from_ms, said_before_ms } = &spec.filter;
    let mut conditions: Vec<String> = Vec::new();
    conditions.extend(spec.cubes.as_ref().map(|cubes| of_cubes(cubes.iter())));
    conditions.extend(
        conversation.as_ref().map(|id| is_one_of("conversation", [id.as_str()].into_iter())),
    );
    if !kinds.is_empty() {
        conditions.push(is_one_of("kind", kinds.iter().copied().map(kind)));
    }
    conditions.extend(tags.iter().map(|tag| format!("array_has(tags, {})", quoted(tag))));
    conditions.extend(said_from_ms.map(|from| format!("said_at_ms >= {from}")));
    conditions.extend(said_before_ms.map(|before| format!("said_at_ms < {before}")));
    (!conditions.is_empty()).then(|| conditions.join(" AND "))
}

/// A kind as it stands in a table.
pub(super) const fn kind(kind: MemoryKind) -> &'static str {
    match kind {
        MemoryKind::Fact => "fact",
        MemoryKind::Episode => "episode",
        MemoryKind::Preference => "preference",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_quoted_and_joined() {
        let cube = |id: &str| CubeId::new(id).expect("valid");
        let filter = SearchFilter::default();
        let mut spec =
            SearchSpec { vector: None, terms: String::new(), cubes: None, filter, limit: 1 };
        assert_eq!(of(&spec), None);
        spec.cubes = Some(vec![cube("o'hara"), cube("bo")]);
        spec.filter.tags = vec!["it's".to_owned()];
        spec.filter.kinds = vec![MemoryKind::Fact];
        spec.filter.said_from_ms = Some(-5);
        let expected = "cube IN ('o''hara', 'bo') AND kind = 'fact' AND array_has(tags, 'it''s') \
                        AND said_at_ms >= -5";
        assert_eq!(of(&spec).as_deref(), Some(expected));
        spec.cubes = Some(Vec::new());
        assert!(of(&spec).is_some_and(|sql| sql.starts_with("false AND")));
    }
}
