//! Bodies about nodes.

use serde::{Deserialize, Serialize};

use crate::ids::{CubeId, NodeId};

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodeCondition {
    /// It tells the store that it lives.
    Alive,
    /// It stopped doing so; the others take its cubes.
    Dead,
    /// It said goodbye.
    Left,
}

body! {
    /// One node of the installation.
    response NodeBody {
        /// Its name.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        id: NodeId,
        /// Whether it lives.
        condition: NodeCondition,
        /// Whether it is the one that answers.
        is_me: bool,
        /// Where the other nodes reach it; nothing for a node that is alone.
        address: Option<String>,
    }
}

body! {
    /// All nodes of the installation, in the order of their names.
    response ListNodesResponse {
        /// Every node that ever told of itself under a name that is still known.
        nodes: Vec<NodeBody>,
    }
}

body! {
    /// Moves a cube to another node.
    request HandOverRequest {
        /// The node that takes it.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        node: NodeId,
    }
}

body! {
    /// A cube has moved.
    response HandOverResponse {
        /// Which cube.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        cube: CubeId,
        /// The node that has it now.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        node: NodeId,
    }
}
