//! Things that should happen sometimes: a search for faults that never meets them searches nothing.

/// A point that some run of a swarm should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The name, as the code that reaches it spells it.
    pub name: &'static str,
    /// What happened there.
    pub about: &'static str,
}

const fn point(name: &'static str, about: &'static str) -> Point {
    Point { name, about }
}

/// All of them.
pub const POINTS: &[Point] = &[
    point("activation.invalidated", "a change of a memory took stored blocks along"),
    point("activation.kept", "a cube kept a context and blocks"),
    point("blob.object-removed", "a sweep removed an object that nothing referred to"),
    point("chat.block-damaged", "a stored block was damaged, and its tokens were computed"),
    point("chat.caller-left", "a caller went away before a reply was whole"),
    point("chat.cube-erased", "a cube that people chatted with was deleted"),
    point("chat.preloaded", "the next turn of a conversation was computed ahead"),
    point("chat.reused-from-device", "a prompt went on in a session of an earlier one"),
    point("chat.reused-from-disk", "blocks of a prompt came from the local disk"),
    point("chat.reused-from-objects", "blocks of a prompt came from the object store"),
    point("chat.reused-from-ram", "blocks of a prompt came from RAM"),
    point("chat.reused-in-8-bits", "blocks of a prompt had been stored in 8 bits"),
    point("claim.contended", "two nodes claimed a cube at the same time"),
    point("client.all-attempts-failed", "a caller gave up without having reached anybody"),
    point("client.other-revision", "an update met a revision that it did not expect"),
    point("client.outcome-unknown", "a caller was left in doubt about a change"),
    point("client.retry-answered", "a call was lost, and its repetition was answered"),
    point("cube.commit-shared", "several changes shared one commit"),
    point("cube.commit-unknown", "a cube gave up over a commit whose outcome stayed unknown"),
    point("cube.fenced", "the store refused a commit of a former owner"),
    point("cube.handed-over", "a cube named its next owner"),
    point("cube.overloaded", "a cube's queue was full"),
    point("cube.quarantined", "a cube panicked too often and was taken out of service"),
    point("cube.read-refused-after-move", "an owner learned from a read that the cube had moved"),
    point("feed.consumer-missed", "a consumer joined after something had been trimmed"),
    point("feed.consumer-overtaken", "two consumers of one name worked on the same shard"),
    point("feed.follower-too-late", "a follower came back after its events had been trimmed"),
    point("feed.page-cut", "a page of a feed ended where one of its shards was cut"),
    point("feed.trimmed", "old records were trimmed from a feed"),
    point("hand-over.asked-by-peer", "a node was asked by another to hand a cube over"),
    point("hand-over.failed", "a hand-over did not come about"),
    point("hydrate.standby-used", "a cube was hydrated from what had been read ahead"),
    point("inference.forgotten-meanwhile", "a memory was forgotten while a reply was computed"),
    point("inference.load-won", "a block arrived before its tokens were computed"),
    point("inference.out-of-memory", "a device without memory let go of what nobody used"),
    point("membership.declared-dead", "a node declared another dead"),
    point("membership.found-itself-dead", "a node found that it had been declared dead"),
    point("node.stopped-in-order", "a node was asked to stop, and had finished everything"),
    point("peers.call-unsent", "a call certainly reached nobody, and was sent elsewhere"),
    point("peers.answer-lost", "a node waited in vain for another's answer"),
    point("peers.repeated-frame", "a frame arrived twice, and the second was dropped"),
    point("peers.wrong-life", "a frame was meant for an earlier life of its receiver"),
    point("route.answered-elsewhere", "a call was answered by another node"),
    point("route.moved", "a node sent a caller on to another"),
    point("scheduler.failed", "a preload failed, or panicked"),
    point("scheduler.event-refused", "events of a tenant found no room"),
    point("scheduler.hit", "a turn needed what was preloaded for it"),
    point("scheduler.late", "a turn needed what was planned, and came first"),
    point("scheduler.loaded", "what a turn may need was loaded before it"),
    point("scheduler.nothing", "nothing was worth to be loaded ahead"),
    point("scheduler.overtaken", "a turn overtook what was prepared for it"),
    point("scheduler.recovered", "a node brought back a cube that had been in use"),
    point("scheduler.restarted", "a shard of the scheduler panicked, and started anew"),
    point("scheduler.typing-replaced", "what was typed replaced what was typed before"),
    point("scheduler.wasted", "what was preloaded was not needed"),
    point("search.unindexed", "a search over a tenant read what its tables had not seen yet"),
    point("snapshot.committed", "a cube in RAM got a snapshot"),
    point("snapshot.committed-behind", "a cube got a snapshot after it had left RAM"),
    point("snapshot.fallback", "a snapshot could not be used, and the rows were read"),
    point("snapshot.loaded", "a cube was hydrated from its snapshot"),
    point("store.outcome-unknown", "the answer to a commit was lost, and was looked up"),
    point("vectors.applied", "a vector table took in a part of the feed"),
    point("vectors.build-begun", "a vector table was begun from the rows of its cubes"),
];
