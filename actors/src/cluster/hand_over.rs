//! A planned move: the target reads ahead, the owner finishes, one commit names the new owner.

use memcube_schemas::{CubeId, NodeId, peer::PeerCall};

use super::{
    peers::{Unanswered, done},
    placement::Placement,
    route::too_large,
};
use crate::{
    cube::CubeKey,
    directory::Cubes,
    error::{Error, ErrorKind, Result},
    metrics as names,
    tenant::TenantContext,
};

/// How often a move follows a cube that moves meanwhile.
const TURNS_MAX: usize = 4;

impl Cubes {
    /// Moves a cube to another node. Callers notice nothing but a short wait.
    ///
    /// # Errors
    /// `Invalid` when this node is alone or the other is not alive, `NotFound` without such a cube,
    /// `Unavailable` when a node does not answer: the cube is then where it was, or already moved,
    /// and works in both cases.
    pub async fn hand_over(&self, context: &TenantContext, id: &CubeId, to: &NodeId) -> Result<()> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        self.describe(context, id).await?;
        let cluster = self.shared().cluster.as_ref();
        let cluster = cluster.ok_or_else(|| Error::invalid("this node is not one of several"))?;
        for turn in 0..TURNS_MAX {
            // A remembered route would do to find the cube, but not to say that it is there
            // already.
            let is_hot = self.shared().directory.contains_key(&key);
            let place = if is_hot { Placement::Here } else { self.locate(&key, turn > 1).await? };
            let moved = match place {
                Placement::There(node) if node == *to => return Ok(()),
                Placement::Here => self.hand_over_here(&key, to).await,
                Placement::There(node) => {
                    let CubeKey { tenant, cube } = key.clone();
                    let call = PeerCall::HandOver { tenant, cube, to: to.clone() };
                    cluster.peers.call(&node, call).await.map_err(silent).and_then(done)
                }
            };
            match moved {
                Err(error) if error.kind() == ErrorKind::Fenced => {}
                Ok(()) => {
                    metrics::counter!(names::HAND_OVERS_TOTAL, "outcome" => "ok").increment(1);
                    self.remember_route(&key, to);
                    return Ok(());
                }
                Err(error) => {
                    metrics::counter!(names::HAND_OVERS_TOTAL, "outcome" => "error").increment(1);
                    return Err(error);
                }
            }
        }
        Err(Error::unavailable(format!("the cube `{id}` keeps moving; retry")))
    }

    /// Moves a cube that this node owns.
    pub(crate) async fn hand_over_here(&self, key: &CubeKey, to: &NodeId) -> Result<()> {
        let shared = self.shared();
        let (me, life) = {
            let view = shared.views.borrow();
            (view.me.clone(), view.life_of(to))
        };
        if *to == me {
            return Ok(());
        }
        let Some(cluster) = &shared.cluster else {
            return Err(Error::invalid("this node is not one of several"));
        };
        let life = life.ok_or_else(|| Error::invalid(format!("the node `{to}` is not alive")))?;
        let CubeKey { tenant, cube } = key.clone();
        let prepare = PeerCall::Prepare { tenant: tenant.clone(), cube: cube.clone() };
        let prepared = cluster.peers.call(to, prepare).await.map_err(silent)?;
        if let Err(error) = done(prepared) {
            // It only makes the move shorter.
            tracing::debug!(%error, cube = %key.cube, node = %to, "could not read ahead");
        }
        // The cube has to be hot to be handed over: only its actor knows that nothing is under way.
        self.slot(key).await?;
        shared.host.hand_over(key.clone(), to.clone(), life).await?;
        self.remember_route(key, to);
        let peers = std::sync::Arc::clone(&cluster.peers);
        let (to, take) = (to.clone(), PeerCall::Take { tenant, cube });
        self.environment().spawn(async move {
            // If it gets lost, the first caller makes the cube hot.
            let _ = peers.call(&to, take).await;
        });
        Ok(())
    }
}

fn silent(unanswered: Unanswered) -> Error {
    match unanswered {
        Unanswered::Full => Error::overloaded("the queue of calls to other nodes", 100),
        Unanswered::TooLarge => too_large(),
        Unanswered::NotSent | Unanswered::Lost => {
            Error::unavailable("the other node did not answer; retry")
        }
    }
}
