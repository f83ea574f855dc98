//! From a caller to the node that owns a cube: look where it is, ask there, follow it when it
//! moves.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    NodeId,
    call::{CubeAnswer, CubeCall},
    codec::decode,
    cube::Ownership,
    keys,
    limits::{PEER_FRAME_BYTES_MAX, ROUTES_MAX},
    peer::{PeerAnswer, PeerCall},
};
use tokio::sync::oneshot;

use super::{
    peers::{Serve, Unanswered},
    placement::{Placement, place},
};
use crate::{
    cube::{CubeKey, CubeMessage, Reply},
    directory::{Cubes, Shared},
    error::{Error, ErrorKind, Result},
    host::Ended,
    storage::RangeRead,
    tenant::TenantContext,
};

/// How often a call is sent again on this node because its cube had left RAM.
const TRIES_MAX: usize = 4;
/// How often a call is sent on because its cube is elsewhere. With the pauses, as long as it takes
/// until a dead owner counts as dead.
const TURNS_MAX: u32 = 24;
/// Turns without a pause: a cube that has moved once is found at the second.
const TURNS_AT_ONCE: u32 = 2;
/// Turns after which a node that nobody else takes the cube from is made to take it.
const TURNS_BEFORE_INSISTING: u32 = 3;
/// The first pause, and the longest.
const PAUSE_MS: (u64, u64) = (10, 400);

impl Cubes {
    /// Asks a cube, wherever it is. Only calls that had no effect, or may be repeated, are sent
    /// again.
    pub(crate) async fn ask(
        &self,
        context: &TenantContext,
        key: &CubeKey,
        call: CubeCall,
    ) -> Result<CubeAnswer> {
        if self.shared().cluster.is_none() {
            return self.ask_here(context, key, &call).await.map_err(outward);
        }
        let mut last = None;
        let mut is_in_doubt = false;
        if self.shared().is_closed() {
            return Err(Error::unavailable("this node is shutting down"));
        }
        for turn in 0..TURNS_MAX {
            pause_before(turn).await;
            let insist = turn >= TURNS_BEFORE_INSISTING;
            let asked = match self.place(key, insist).await {
                Ok(Placement::Here) => {
                    self.ask_here(context, key, &call).await.map_err(Refused::for_sure)
                }
                Ok(Placement::There(node)) => {
                    self.ask_there(context, key, &call, &node, insist).await
                }
                Err(error) => Err(Refused::for_sure(error)),
            };
            match asked {
                Err(Refused { error, is_in_doubt: doubt }) => {
                    is_in_doubt |= doubt && call.is_change();
                    if error.kind() != ErrorKind::Fenced {
                        return Err(if is_in_doubt { unsure(&error) } else { error });
                    }
                    last = Some(error);
                }
                Ok(answer) => return Ok(answer),
            }
        }
        let reason = last.map_or_else(String::new, |error| format!(" ({error})"));
        let error =
            Error::unavailable(format!("the cube `{}` cannot be reached{reason}; retry", key.cube))
                .retry_after_ms(500);
        Err(if is_in_doubt { unsure(&error) } else { error })
    }

    /// Fails early, before something expensive is done for it, when there is no such cube.
    pub(crate) async fn find(&self, key: &CubeKey) -> Result<()> {
        let shared = self.shared();
        if shared.cluster.is_none() {
            return self.slot(key).await.map(|_| ()).map_err(outward);
        }
        let is_known = shared.directory.contains_key(key) || self.route(key).is_some();
        if is_known || self.manifest(key).await?.is_some() {
            return Ok(());
        }
        Err(Error::not_found(format!("there is no cube `{}`", key.cube)))
    }

    /// Sends to the live incarnation of a cube on this node, and hydrates it if need be.
    pub(crate) async fn ask_here(
        &self,
        context: &TenantContext,
        key: &CubeKey,
        call: &CubeCall,
    ) -> Result<CubeAnswer> {
        let mut answer =
            Err(Error::unavailable(format!("the cube `{}` keeps leaving RAM; retry", key.cube))
                .retry_after_ms(500));
        for _ in 0..TRIES_MAX {
            let slot = self.slot(key).await?;
            let (sender, receiver) = oneshot::channel();
            let reply = Reply::new(sender, slot.take_place()?);
            let by = context.principal().to_owned();
            let message = CubeMessage::Call { call: call.clone(), by, reply };
            if slot.actor.cast(message).is_err() {
                self.why_ended(key, slot.actor.get_id()).await?;
                continue;
            }
            match receiver.await {
                Ok(Err(error)) if error.kind() == ErrorKind::Fenced => {
                    self.why_ended(key, slot.actor.get_id()).await?;
                    answer = Err(error);
                }
                Ok(result) => {
                    if result.is_ok() && matches!(call, CubeCall::Erase) {
                        self.jobs().cancel_of_cube(&key.tenant, &key.cube);
                    }
                    return result;
                }
                Err(_) => match self.why_ended(key, slot.actor.get_id()).await? {
                    // Whoever was part of a commit has been answered: this call had no effect.
                    Ended::Passivated | Ended::Fenced => {}
                    Ended::Erased => return Err(gone(key)),
                    Ended::Failed { reason } => return Err(failed(key, &reason)),
                },
            }
        }
        answer
    }

    /// Asks the node where the cube is thought to be. `Fenced` means: nothing was done, look again.
    async fn ask_there(
        &self,
        context: &TenantContext,
        key: &CubeKey,
        call: &CubeCall,
        node: &NodeId,
        insist: bool,
    ) -> std::result::Result<CubeAnswer, Refused> {
        let look_again = || {
            let message = format!("it is not on `{node}`");
            Refused::for_sure(Error::new(ErrorKind::Fenced, message))
        };
        let Some(cluster) = &self.shared().cluster else { return Err(look_again()) };
        let asked = PeerCall::Cube {
            tenant: key.tenant.clone(),
            principal: context.principal().to_owned(),
            cube: key.cube.clone(),
            call: call.clone(),
            insist,
        };
        let answer = cluster.peers.call(node, asked).await;
        if let Ok(PeerAnswer::Cube(answer)) = answer {
            self.environment().reach("route.answered-elsewhere", node.as_str());
            self.remember_route(key, node);
            return Ok(answer);
        }
        self.forget_route(key);
        match answer {
            Ok(PeerAnswer::Moved(to)) => {
                self.environment().reach("route.moved", to.as_str());
                self.remember_route(key, &to);
                Err(look_again())
            }
            Ok(PeerAnswer::Failed(failure)) => Err(Refused::for_sure(failure.into())),
            Ok(PeerAnswer::WrongLife) => Err(look_again()),
            Err(Unanswered::NotSent) => {
                let message = format!("`{node}` cannot be reached");
                Err(Refused::for_sure(Error::new(ErrorKind::Fenced, message)))
            }
            Err(Unanswered::Full) => {
                let error = Error::overloaded("the queue of calls to other nodes", 100);
                Err(Refused::for_sure(error))
            }
            Err(Unanswered::TooLarge) => Err(Refused::for_sure(too_large())),
            Err(Unanswered::Lost) if call.may_be_repeated() => {
                let message = format!("`{node}` does not answer");
                let error = Error::new(ErrorKind::Fenced, message);
                Err(Refused { error, is_in_doubt: true })
            }
            Err(Unanswered::Lost) => Err(Refused::for_sure(Error::unavailable(format!(
                "the node `{node}` did not answer; if this was a change, its outcome is unknown: \
                 read before retrying"
            )))),
            Ok(PeerAnswer::Done | PeerAnswer::Cube(_)) => {
                let error = Error::internal("a node gave an answer to another question");
                Err(Refused::for_sure(error))
            }
        }
    }

    /// Where a cube is, or should be.
    pub(crate) async fn place(&self, key: &CubeKey, insist: bool) -> Result<Placement> {
        let shared = self.shared();
        if !shared.views.borrow().is_serving {
            return Err(Error::unavailable(
                "another process runs under this node's id; give each its own, and restart",
            ));
        }
        if shared.directory.contains_key(key) {
            return Ok(Placement::Here);
        }
        let cached = if insist { None } else { self.route(key) };
        if let Some(node) = cached {
            return Ok(Placement::There(node));
        }
        self.locate(key, insist).await
    }

    /// Reads where a cube is from the store.
    pub(crate) async fn locate(&self, key: &CubeKey, insist: bool) -> Result<Placement> {
        let row = keys::ownership(&key.tenant, &key.cube);
        let output = self.store().read(vec![RangeRead::key(row)]).await?;
        let entry = output.pages.into_iter().flat_map(|page| page.entries).next();
        let row = entry.map(|entry| decode::<Ownership>(&entry.value)).transpose()?;
        let placement = place(row.as_ref(), &self.shared().views.borrow(), key, insist);
        if let Placement::There(node) = &placement {
            self.remember_route(key, node);
        }
        Ok(placement)
    }

    /// The node at which a cube was found last, while it is alive.
    pub(crate) fn route(&self, key: &CubeKey) -> Option<NodeId> {
        let shared = self.shared();
        let node = shared.routes.get(key).map(|node| node.clone())?;
        let is_alive = shared.views.borrow().others.contains_key(&node);
        is_alive.then_some(node)
    }

    pub(crate) fn remember_route(&self, key: &CubeKey, node: &NodeId) {
        let routes = &self.shared().routes;
        if routes.len() >= ROUTES_MAX {
            // They are only hints, and come back one read each.
            routes.clear();
        }
        routes.insert(key.clone(), node.clone());
    }

    fn forget_route(&self, key: &CubeKey) {
        self.shared().routes.remove(key);
    }

    /// Executes what another node asks of a cube.
    async fn serve_cube(
        &self,
        context: TenantContext,
        key: CubeKey,
        call: CubeCall,
        insist: bool,
    ) -> PeerAnswer {
        // The sender followed a hint; here only the store's word counts.
        let is_hot = self.shared().directory.contains_key(&key);
        let placement = if is_hot { Ok(Placement::Here) } else { self.locate(&key, insist).await };
        match placement {
            Ok(Placement::Here) => match self.ask_here(&context, &key, &call).await {
                Ok(answer) => PeerAnswer::Cube(answer),
                Err(error) => PeerAnswer::Failed(error.into()),
            },
            Ok(Placement::There(node)) => PeerAnswer::Moved(node),
            Err(error) => PeerAnswer::Failed(error.into()),
        }
    }
}

impl Serve for Shared {
    fn serve(self: Arc<Self>, from: NodeId, call: PeerCall) -> BoxFuture<'static, PeerAnswer> {
        Box::pin(async move {
            let cubes = Cubes::from_shared(self);
            match call {
                PeerCall::Cube { tenant, principal, cube, call, insist } => {
                    let tenant = cubes.shared().tenant_to_serve(tenant);
                    let context = TenantContext::authenticated(tenant.clone(), principal);
                    cubes.serve_cube(context, CubeKey { tenant, cube }, call, insist).await
                }
                PeerCall::Prepare { tenant, cube } => {
                    outcome(cubes.prepare(CubeKey { tenant, cube }).await)
                }
                PeerCall::Take { tenant, cube } => {
                    let key = CubeKey { tenant, cube };
                    cubes.shared().routes.remove(&key);
                    outcome(cubes.slot(&key).await.map(|_| ()))
                }
                PeerCall::HandOver { tenant, cube, to } => {
                    cubes.environment().reach("hand-over.asked-by-peer", from.as_str());
                    outcome(cubes.hand_over_here(&CubeKey { tenant, cube }, &to).await)
                }
            }
        })
    }
}

pub(super) fn too_large() -> Error {
    Error::invalid(format!(
        "the request takes more than {PEER_FRAME_BYTES_MAX} bytes between nodes: send less at once"
    ))
}

fn outcome(result: Result<()>) -> PeerAnswer {
    match result {
        Ok(()) => PeerAnswer::Done,
        Err(error) => PeerAnswer::Failed(error.into()),
    }
}

async fn pause_before(turn: u32) {
    let Some(exponent) = turn.checked_sub(TURNS_AT_ONCE) else { return };
    let (first, longest) = PAUSE_MS;
    let pause_ms = longest.min(first << exponent.min(10));
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
}

/// An error as callers outside should see it: where to ask again is not their affair.
pub(crate) fn outward(error: Error) -> Error {
    if error.kind() == ErrorKind::Fenced {
        return Error::unavailable(error.message()).retry_after_ms(500);
    }
    error
}

/// Why a try did not work.
struct Refused {
    error: Error,
    /// It may have worked all the same: nobody answered.
    is_in_doubt: bool,
}

impl Refused {
    fn for_sure(error: Error) -> Self {
        Self { error, is_in_doubt: false }
    }
}

/// The error of a change of which an earlier try was not answered: no later refusal tells that it
/// did not happen.
fn unsure(error: &Error) -> Error {
    Error::unavailable(format!(
        "{error}; an earlier try was not answered, so the outcome is unknown: retry with the same \
         idempotency key"
    ))
    .retry_after_ms(error.retry_after().unwrap_or(500))
}

fn gone(key: &CubeKey) -> Error {
    Error::not_found(format!("the cube `{}` was deleted", key.cube))
}

fn failed(key: &CubeKey, reason: &str) -> Error {
    Error::unavailable(format!(
        "the cube `{}` failed and was restarted ({reason}); if this was a change, its outcome is \
         unknown: read before retrying",
        key.cube
    ))
    .retry_after_ms(200)
}
