//! Which node a cube belongs on: a pure function of the ownership row and of who is alive.

use std::collections::BTreeMap;

use memcube_schemas::{Incarnation, NodeId, cube::Ownership};

use crate::cube::CubeKey;

/// Who is alive, as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The node that looks.
    pub me: NodeId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// The other nodes that are alive, each with its present life.
    pub others: BTreeMap<NodeId, Incarnation>,
    /// Whether the node may serve: it has told the store that it is there, and nobody else has
    /// taken its name.
    pub is_serving: bool,
}

impl View {
    /// A node that is alone.
    #[must_use]
    pub const fn alone(me: NodeId, incarnation: Incarnation) -> Self {
        Self { me, incarnation, others: BTreeMap::new(), is_serving: true }
    }

    /// Whether some work that any node could do is this node's, as far as it knows: the node with
    /// the highest score for the work's name does it. Nodes whose views differ may both think so.
    #[must_use]
    pub fn keeps(&self, work: &str) -> bool {
        self.is_serving && *best(self, &[work]) == self.me
    }

    /// The present life of a node, if it is alive.
    #[must_use]
    pub fn life_of(&self, node: &NodeId) -> Option<Incarnation> {
        if *node == self.me { Some(self.incarnation) } else { self.others.get(node).copied() }
    }
}

/// Where to go for a cube.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// This node owns it, or should claim it.
    Here,
    /// That node does.
    There(NodeId),
}

/// Where a cube belongs. An owner that is alive keeps it; the cube of an owner that is not, and one
/// that nobody ever owned, goes to the node with the highest score (rendezvous hashing, Thaler and
/// Ravishankar 1998), so that all nodes with the same view agree. Whoever `insists` takes such a
/// cube itself: it has been sent around by nodes whose views differ.
pub(crate) fn place(
    row: Option<&Ownership>,
    view: &View,
    key: &CubeKey,
    insists: bool,
) -> Placement {
    match row {
        Some(row) if row.node == view.me => Placement::Here,
        Some(row) if view.others.contains_key(&row.node) => Placement::There(row.node.clone()),
        Some(_) | None if insists => Placement::Here,
        Some(_) | None => {
            let best = preferred(view, key);
            if *best == view.me { Placement::Here } else { Placement::There(best.clone()) }
        }
    }
}

fn preferred<'a>(view: &'a View, key: &CubeKey) -> &'a NodeId {
    best(view, &[key.tenant.as_str(), key.cube.as_str()])
}

fn best<'a>(view: &'a View, name: &[&str]) -> &'a NodeId {
    let nodes = view.others.keys().chain([&view.me]);
    nodes
        .max_by_key(|node| (score(node, name), *node))
        .expect("invariant: a view holds the node that looks")
}

/// FNV-1a over the node and the parts of a name, stirred, because FNV's high bits depend little on
/// its last bytes.
fn score(node: &NodeId, name: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let parts = [node.as_str()].into_iter().chain(name.iter().copied());
    for byte in parts.flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{CubeId, Epoch, TenantId};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn view(me: &str, others: &[&str]) -> View {
        let others = others.iter().map(|name| (node(name), Incarnation(1))).collect();
        View { others, ..View::alone(node(me), Incarnation(1)) }
    }

    fn key(cube: &str) -> CubeKey {
        let tenant = TenantId::new("acme").expect("valid");
        CubeKey { tenant, cube: CubeId::new(cube).expect("valid") }
    }

    fn owned_by(name: &str) -> Ownership {
        Ownership { epoch: Epoch(1), node: node(name), incarnation: Incarnation(1) }
    }

    #[test]
    fn a_living_owner_keeps_its_cube_and_a_dead_one_does_not() {
        let (view, key) = (view("a", &["b"]), key("ann"));
        assert_eq!(place(Some(&owned_by("a")), &view, &key, false), Placement::Here);
        assert_eq!(place(Some(&owned_by("b")), &view, &key, true), Placement::There(node("b")));
        assert_eq!(place(Some(&owned_by("c")), &view, &key, true), Placement::Here);
    }

    #[test]
    fn nodes_of_one_view_agree_and_share_evenly_and_few_cubes_move_when_one_leaves() {
        let views = [view("a", &["b", "c"]), view("b", &["a", "c"]), view("c", &["a", "b"])];
        let after = view("a", &["b"]);
        let (mut counts, mut moved) = ([0; 3], 0);
        for number in 0..3_000 {
            let key = key(&format!("user {number}"));
            let here: Vec<usize> = (0..3)
                .filter(|n| place(None, &views[*n], &key, false) == Placement::Here)
                .collect();
            assert_eq!(here.len(), 1, "exactly one node takes `{}`", key.cube);
            counts[here[0]] += 1;
            let stays = preferred(&after, &key) == preferred(&views[0], &key);
            moved += usize::from(!stays && here[0] != 2);
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        assert_eq!(moved, 0, "only cubes of the node that left move");
    }
}
