//! Everything random about a run, decided before it starts: who asks what, and what goes wrong.
//!
//! A plan is plain data. It can be saved, read by people, cut down by the shrinker, and run again.

mod class;

use std::collections::{BTreeMap, BTreeSet};

use memcube_actors::defects::Defect;
use serde::{Deserialize, Serialize};

pub use self::class::FaultClass;

/// What a run needs to be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    /// The workload: its name in the catalogue, or the user's own.
    pub scenario: String,
    /// Where all draws during the run come from.
    pub seed: u64,
    /// Nodes of the cluster: 3 to 7 in the catalogue.
    pub nodes: u32,
    /// Simulated seconds of work before the heal.
    pub seconds: u32,
    /// Which state store the nodes share.
    #[serde(default, skip_serializing_if = "StoreKind::is_in_memory")]
    pub store: StoreKind,
    /// Whether nodes have a vector tier.
    #[serde(default)]
    pub vectors: bool,
    /// Whether nodes have a language model.
    #[serde(default)]
    pub models: bool,
    /// How nodes prepare the next turns of conversations, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerPlan>,
    /// Planted bugs that are switched on.
    #[serde(default)]
    pub defects: BTreeSet<Defect>,
    /// Faults that strike at random, and how often: times in a thousand chances.
    #[serde(default)]
    pub faults: BTreeMap<FaultClass, u32>,
    /// Faults that strike at a time.
    #[serde(default)]
    pub events: Vec<TimedFault>,
    /// What each caller does.
    #[serde(default)]
    pub scripts: Vec<Script>,
}

impl Plan {
    /// Three nodes for a minute, in which nobody does anything and nothing goes wrong.
    #[must_use]
    pub fn quiet(scenario: &str, seed: u64) -> Self {
        Self {
            scenario: scenario.to_owned(),
            seed,
            nodes: 3,
            seconds: 60,
            store: StoreKind::InMemory,
            vectors: false,
            models: false,
            scheduler: None,
            defects: BTreeSet::new(),
            faults: BTreeMap::new(),
            events: Vec::new(),
            scripts: Vec::new(),
        }
    }
}

/// How nodes prepare the next turns of conversations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SchedulerPlan {
    /// Tokens that a node computes ahead for one tenant in a minute; 0 for any number.
    pub tenant_tokens_per_minute: u64,
}

/// A kind of state store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// The executable specification.
    #[default]
    InMemory,
    /// Memcube's backend for FoundationDB, over a simulated cluster.
    Foundationdb,
}

impl StoreKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::InMemory, Self::Foundationdb];

    /// The name in plans and on command lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InMemory => "in-memory",
            Self::Foundationdb => "foundationdb",
        }
    }

    /// Whether this build has it.
    #[must_use]
    pub const fn is_built(self) -> bool {
        match self {
            Self::InMemory => true,
            Self::Foundationdb => cfg!(feature = "fdb"),
        }
    }

    /// How a command line chooses it, after a space; nothing for what is chosen anyway.
    #[must_use]
    pub fn option(self) -> String {
        match self {
            Self::InMemory => String::new(),
            Self::Foundationdb => format!(" --store {}", self.as_str()),
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    const fn is_in_memory(&self) -> bool {
        matches!(self, Self::InMemory)
    }
}

/// A fault with a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TimedFault {
    /// When it strikes: simulated milliseconds.
    pub at_ms: u64,
    /// How long it lasts, where that means anything.
    pub for_ms: u64,
    /// What.
    pub fault: Fault,
}

/// A fault that somebody could point at. Nodes are counted from zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The power goes, and comes back after the time. What was not durable is gone.
    Crash {
        /// Which node.
        node: u32,
    },
    /// The process is asked to stop, finishes what is under way, and starts again.
    Restart {
        /// Which node.
        node: u32,
    },
    /// The process stands still, and goes on as if nothing had been.
    Pause {
        /// Which node.
        node: u32,
    },
    /// No message passes from one node to another.
    CutLink {
        /// From.
        from: u32,
        /// To.
        to: u32,
        /// Also no message back.
        both_ways: bool,
    },
    /// The node reaches no other node and no caller, but still the store.
    Isolate {
        /// Which node.
        node: u32,
    },
    /// The node does not reach the store, but others and callers still reach it.
    CutStore {
        /// Which node.
        node: u32,
    },
    /// The store fails and recovers: what it had not acknowledged may be gone, and its version
    /// jumps.
    StoreRecovery,
    /// The store takes no commits: its disk is full.
    StoreFull,
    /// The node's connection to the store refuses everything until it is opened anew.
    StaleHandle {
        /// Which node.
        node: u32,
    },
    /// The node's wall clock jumps, and stays there.
    ClockJump {
        /// Which node.
        node: u32,
        /// By how much, in milliseconds.
        by_ms: i64,
    },
    /// Callers' connections to the node break; it goes on.
    CutClients {
        /// Which node.
        node: u32,
    },
}

/// What one caller does, one step after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// On behalf of whom.
    pub tenant: String,
    /// The cube it works on.
    pub cube: String,
    /// Under which number it says things that do not tell whose they are: two callers of different
    /// tenants with one voice say the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice: Option<u32>,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// A number that stays the same when other steps are removed: draws hang on it.
    pub id: u64,
    /// How long the caller waits before it.
    pub think_ms: u64,
    /// What it does.
    pub action: Action,
}

/// What a caller does. `pick` chooses among the items that this caller knows of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Remembers something about a topic, said in a scene.
    Add {
        /// Topic number.
        topic: u32,
        /// Conversation number.
        scene: u32,
    },
    /// Looks for an item by its marker.
    Search {
        /// Which.
        pick: u64,
    },
    /// Looks for an item by its marker in all cubes of the tenant.
    SearchTenant {
        /// Which.
        pick: u64,
    },
    /// Reads an item.
    Get {
        /// Which.
        pick: u64,
    },
    /// Changes an item's text, on the condition that it has not changed meanwhile.
    Update {
        /// Which.
        pick: u64,
    },
    /// Forgets an item.
    Delete {
        /// Which.
        pick: u64,
        /// With its history.
        purge: bool,
    },
    /// Reads everything.
    List,
    /// Hands the cube over to another node.
    HandOver {
        /// Which node.
        to: u32,
    },
    /// Asks many times at once, for the pleasure of it.
    Burst {
        /// How many searches.
        count: u32,
    },
    /// Says something in a conversation, and lets the language model answer.
    Chat {
        /// Conversation number.
        scene: u32,
        /// What it is about.
        topic: u32,
        /// Which instructions stand before everything.
        preamble: u32,
        /// Whether memories are looked for.
        recalls: bool,
        /// After how many pieces of the reply the caller goes away, if it does.
        leaves_after: Option<u32>,
    },
    /// Says something in a conversation, lets the language model answer, and has both remembered.
    Converse {
        /// Conversation number.
        scene: u32,
        /// What it is about.
        topic: u32,
        /// After how many pieces of the reply the caller goes away, if it does.
        leaves_after: Option<u32>,
    },
    /// Types something of a turn, piece by piece: some pieces late, and some sent twice.
    Type {
        /// Conversation number.
        scene: u32,
        /// What it is about.
        topic: u32,
    },
    /// Tells what else happens in a conversation.
    Note {
        /// Conversation number.
        scene: u32,
        /// What it is about.
        topic: u32,
        /// What happens.
        what: Happening,
    },
    /// Sends so many events at once that most of them find no room.
    Flood {
        /// How many.
        count: u32,
    },
    /// Computes ahead what the next turn of a conversation will begin with.
    Preload {
        /// Conversation number.
        scene: u32,
        /// Which memories are expected to be needed, at most three.
        pick: u64,
    },
    /// Freezes an item, or lets it thaw.
    Freeze {
        /// Which.
        pick: u64,
    },
    /// Deletes the cube with everything in it, and makes it anew.
    Erase,
}

/// What may happen in a conversation besides turns and typing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// A topic is marked.
    Topic,
    /// The assistant calls a tool.
    Tool,
    /// The user turns away.
    Pause,
    /// The user is back.
    Resume,
    /// A turn is finished that no model of memcube answered.
    Turn,
    /// It is over.
    Close,
    /// Something happens in a cube that is not there.
    Stray,
}
