//! A planned move: the target reads ahead, the owner finishes, one commit names the new owner.

use memcube_schemas::{CubeId, NodeId, peer::PeerCall};

use super::{
    peers::{Unanswered, done},
    placement::Placement,
};
use crate::{
    cube::CubeKey,
    directory::Cubes,
    error::{Error, ErrorKind, Result},
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
            let moved = match self.place(&key, turn > 1).await? {
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
                result => {
                    self.remember_route(&key, to);
                    return result;
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
        cluster.peers.call(to, prepare).await.map_err(silent).and_then(done)?;
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

fn silent(_: Unanswered) -> Error {
    Error::unavailable("the other node did not answer; retry")
}
