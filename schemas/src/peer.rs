//! What nodes say to each other, as it crosses the wire.

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    call::{CubeAnswer, CubeCall},
    codec::Stored,
    ids::{CubeId, Incarnation, NodeId, TenantId},
};

/// One message between two nodes. It arrives at most as often as the transport likes: receivers
/// drop what is for another life of theirs, and what they have seen.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct PeerFrame {
    /// Who sends.
    pub from: NodeId,
    /// Which life of the sender.
    pub from_incarnation: Incarnation,
    /// Which life of the receiver is meant.
    pub to_incarnation: Incarnation,
    /// Names the call among those of this sender's life; the answer carries the same number.
    pub call: u64,
    /// What is said.
    pub body: PeerBody,
}

impl Stored for PeerFrame {
    const NAME: &'static str = "peer frame";
    const KIND: u8 = 10;
    // Format 1 crossed no network: 0.2.0 had none between nodes.
    const FORMAT: u8 = 2;
}

/// A call or its answer.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum PeerBody {
    /// Somebody asks.
    Call(PeerCall),
    /// Somebody answers.
    Answer(PeerAnswer),
}

/// What one node asks of another.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum PeerCall {
    /// Ask a cube.
    Cube {
        /// On behalf of this tenant, whom the sender has authenticated.
        tenant: TenantId,
        /// The name under which changes are recorded.
        principal: String,
        /// Which cube.
        cube: CubeId,
        /// What.
        call: CubeCall,
        /// The sender was sent around: take the cube unless somebody alive holds it.
        insist: bool,
    },
    /// Read a cube into RAM ahead of owning it.
    Prepare {
        /// Whose cube.
        tenant: TenantId,
        /// Which cube.
        cube: CubeId,
    },
    /// The cube was handed over to the receiver: make it hot.
    Take {
        /// Whose cube.
        tenant: TenantId,
        /// Which cube.
        cube: CubeId,
    },
    /// Hand a cube that the receiver owns over to another node.
    HandOver {
        /// Whose cube.
        tenant: TenantId,
        /// Which cube.
        cube: CubeId,
        /// To whom.
        to: NodeId,
    },
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum PeerAnswer {
    /// What the cube said.
    Cube(CubeAnswer),
    /// The cube is not here: ask that node. Nothing was done.
    Moved(NodeId),
    /// It did not work.
    Failed(PeerFailure),
    /// The call was for another life of this node, or from a sender that it does not know; or the
    /// node takes no calls any more. If the answer is from the life that was asked, nothing was
    /// done; otherwise nobody can say.
    WrongLife,
    /// It is done.
    Done,
}

/// An error on its way to another node; the kinds are those of the actors' error.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PeerFailure {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// What is wrong.
    pub message: String,
    /// When a retry makes sense, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ErrorKind {
    /// It is not there: check the name.
    NotFound,
    /// The request cannot be carried out as it stands: change it.
    Invalid,
    /// Somebody else changed it, or it exists already: read again and retry with the fresh version.
    Conflict,
    /// Not possible now: retry later.
    Unavailable,
    /// Too much at once: back off; the error carries `retry_after_ms`.
    Overloaded,
    /// This owner was replaced by another: ask the directory again.
    Fenced,
    /// Something stored is damaged, or a cube is quarantined: an operator has to look.
    Corrupt,
    /// A defect of memcube: report it.
    Internal,
    /// It was there and is there no more: begin anew from what is there now.
    Gone,
}
