//! One cube in the eyes of a caller: every call is recorded with what came of it.

use futures_util::future::BoxFuture;
use memcube_actors::{
    CubeHandle, Cubes, Error, ErrorKind, TenantContext,
    cube::{AddRequest, DeleteRequest, SearchOutcome, SearchRequest, UpdateRequest},
    vectors::{TenantSearchOutcome, TenantSearchRequest},
};
use memcube_schemas::{
    CubeId, MemoryId, NodeId, RequestId, TenantId, command::Selection, limits::PAGE_ITEMS_MAX,
    memory::MemoryItem,
};

use super::client::{Attempt, CallError, Client, TRIES_BITS};
use crate::{
    history::{Call, Outcome, Seen},
    marker::{marker_of, tenant_of, word_of},
    network::node_name,
};

/// One cube, as a client sees it. Cheap to clone.
#[derive(Clone)]
pub struct Cube {
    pub(super) client: Client,
    pub(super) id: CubeId,
}

impl Cube {
    /// Remembers a text. A retry has no second effect.
    ///
    /// # Errors
    /// When it was refused, or its outcome is unknown.
    pub async fn add(&self, text: &str) -> Result<MemoryId, CallError> {
        let request = AddRequest { facts: vec![text.to_owned()], ..AddRequest::default() };
        self.add_as(request, self.client.world.next_operation(), text).await
    }

    /// Adds one item under an operation number that is stable.
    pub(crate) async fn add_as(
        &self,
        mut request: AddRequest,
        operation: u64,
        text: &str,
    ) -> Result<MemoryId, CallError> {
        let marker = marker_of(text).unwrap_or_default();
        let number = self.invoke(Call::Add { marker });
        let request_id = format!("client-{}-{operation}", self.client.number);
        request.request = RequestId::new(request_id).ok();
        let added = self
            .call(operation, true, move |cube| {
                let request = request.clone();
                Box::pin(async move { cube.add(request).await })
            })
            .await;
        let (outcome, result) = match added {
            Ok(added) => match added.memories.as_slice() {
                [memory] if memory.folded => {
                    (Outcome::Refused { reason: "it was known already".to_owned() }, Ok(memory.id))
                }
                [memory] => {
                    (Outcome::Added { id: memory.id, version: added.version }, Ok(memory.id))
                }
                other => {
                    let reason = format!("one text made {} items", other.len());
                    (Outcome::Unknown { reason: reason.clone() }, Err(CallError::Unknown(reason)))
                }
            },
            Err(error) => (failed(&error), Err(error)),
        };
        self.answer(number, outcome);
        result
    }

    /// Looks for something.
    ///
    /// # Errors
    /// When it was refused, or nobody could be reached.
    pub async fn search(&self, query: &str) -> Result<SearchOutcome, CallError> {
        self.search_as(query, self.client.world.next_operation()).await
    }

    pub(crate) async fn search_as(
        &self,
        query: &str,
        operation: u64,
    ) -> Result<SearchOutcome, CallError> {
        let number = self.invoke(Call::Search { marker: word_of(query).unwrap_or_default() });
        let request = SearchRequest { top_k: PAGE_ITEMS_MAX, ..SearchRequest::new(query) };
        let found = self
            .call(operation, true, move |cube| {
                let request = request.clone();
                Box::pin(async move { cube.search(request).await })
            })
            .await;
        let outcome = match &found {
            Ok(found) => Outcome::Found {
                hits: found.hits.iter().map(|hit| self.seen(&hit.item)).collect(),
                version: found.version,
            },
            Err(error) => not_read(error),
        };
        self.answer(number, outcome);
        found
    }

    /// Looks for something in all cubes of the tenant.
    ///
    /// # Errors
    /// When it was refused, or nobody could be reached.
    pub async fn search_tenant(&self, query: &str) -> Result<TenantSearchOutcome, CallError> {
        self.search_tenant_as(query, self.client.world.next_operation()).await
    }

    pub(crate) async fn search_tenant_as(
        &self,
        query: &str,
        operation: u64,
    ) -> Result<TenantSearchOutcome, CallError> {
        let marker = word_of(query).unwrap_or_default();
        let number = self.invoke(Call::SearchTenant { marker });
        let request = SearchRequest { top_k: PAGE_ITEMS_MAX, ..SearchRequest::new(query) };
        let found = self
            .client
            .retry(operation, true, move |cubes, context| {
                let request = TenantSearchRequest { request: request.clone(), cubes: None };
                Box::pin(async move { cubes.search_tenant(&context, request).await })
            })
            .await;
        let outcome = match &found {
            Ok(found) => {
                if found.unindexed > 0 {
                    self.client.world.reach("search.unindexed");
                }
                let hits = found.hits.iter();
                let seen = |hit: &memcube_actors::vectors::CubeHit| {
                    (hit.cube.clone(), self.seen(&hit.hit.item))
                };
                Outcome::FoundAcross { hits: hits.map(seen).collect() }
            }
            Err(error) => not_read(error),
        };
        self.answer(number, outcome);
        found
    }

    /// Reads an item; `None` if there is none.
    ///
    /// # Errors
    /// When nobody could be reached.
    pub async fn get(&self, id: MemoryId) -> Result<Option<MemoryItem>, CallError> {
        self.get_as(id, self.client.world.next_operation()).await
    }

    pub(crate) async fn get_as(
        &self,
        id: MemoryId,
        operation: u64,
    ) -> Result<Option<MemoryItem>, CallError> {
        let number = self.invoke(Call::Get { id });
        let read = self
            .call(operation, true, move |cube| Box::pin(async move { cube.get(id).await }))
            .await;
        let (outcome, result) = match read {
            Ok(item) => (Outcome::Item(self.seen(&item)), Ok(Some(MemoryItem::clone(&item)))),
            Err(error) if is_kind(&error, ErrorKind::NotFound) => (Outcome::Missing, Ok(None)),
            Err(error) => (not_read(&error), Err(error)),
        };
        self.answer(number, outcome);
        result
    }

    /// Changes an item's text. It is tried once: after silence nobody knows whether it happened.
    ///
    /// # Errors
    /// When it was refused, or its outcome is unknown.
    pub async fn update(
        &self,
        id: MemoryId,
        text: &str,
        expected_revision: Option<u32>,
    ) -> Result<MemoryItem, CallError> {
        let operation = self.client.world.next_operation();
        self.update_as(id, text, expected_revision, operation).await
    }

    pub(crate) async fn update_as(
        &self,
        id: MemoryId,
        text: &str,
        expected_revision: Option<u32>,
        operation: u64,
    ) -> Result<MemoryItem, CallError> {
        let marker = marker_of(text).unwrap_or_default();
        let text = Some(text.to_owned());
        let request = UpdateRequest { text, expected_revision, ..UpdateRequest::default() };
        self.change_as(id, marker, request, operation).await
    }

    /// Changes an item, whose marker is this one afterwards.
    pub(super) async fn change_as(
        &self,
        id: MemoryId,
        marker: String,
        request: UpdateRequest,
        operation: u64,
    ) -> Result<MemoryItem, CallError> {
        let expected_revision = request.expected_revision;
        let number = self.invoke(Call::Update { id, marker, expected_revision });
        let updated = self
            .call(operation, false, move |cube| {
                let request = request.clone();
                Box::pin(async move { cube.update(id, request).await })
            })
            .await;
        let outcome = match &updated {
            Ok(item) => Outcome::Updated { seen: self.seen(item), version: item.version },
            Err(error) if is_kind(error, ErrorKind::NotFound) => Outcome::Missing,
            Err(error) if is_kind(error, ErrorKind::Conflict) => {
                self.client.world.reach("client.other-revision");
                Outcome::OtherRevision
            }
            Err(error) => failed(error),
        };
        self.answer(number, outcome);
        updated
    }

    /// Forgets an item, and with `purge` its history. It is tried once.
    ///
    /// # Errors
    /// When it was refused, or its outcome is unknown.
    pub async fn delete(&self, id: MemoryId, purge: bool) -> Result<(), CallError> {
        self.delete_as(id, purge, self.client.world.next_operation()).await
    }

    pub(crate) async fn delete_as(
        &self,
        id: MemoryId,
        purge: bool,
        operation: u64,
    ) -> Result<(), CallError> {
        let number = self.invoke(Call::Delete { id, purge });
        let deleted = self
            .call(operation, false, move |cube| {
                let request = DeleteRequest { selection: Selection::Ids(vec![id]), purge };
                Box::pin(async move { cube.delete(request).await })
            })
            .await;
        let outcome = match &deleted {
            Ok((_, version)) => Outcome::Deleted { version: *version },
            Err(error) if is_kind(error, ErrorKind::NotFound) => Outcome::Missing,
            Err(error) => failed(error),
        };
        self.answer(number, outcome);
        deleted.map(|_| ())
    }

    /// Reads all items, in the order in which they were made.
    ///
    /// # Errors
    /// When nobody could be reached, or there are more than fit on a page.
    pub async fn list(&self) -> Result<Vec<MemoryItem>, CallError> {
        self.list_as(self.client.world.next_operation()).await
    }

    pub(crate) async fn list_as(&self, operation: u64) -> Result<Vec<MemoryItem>, CallError> {
        let number = self.invoke(Call::List);
        let listed = self
            .call(operation, true, |cube| {
                Box::pin(async move { cube.list(None, PAGE_ITEMS_MAX).await })
            })
            .await;
        let (outcome, result) = match listed {
            Ok(page) if page.more => {
                let reason = format!("the cube has more than {PAGE_ITEMS_MAX} items");
                (Outcome::Refused { reason: reason.clone() }, Err(CallError::Unreachable(reason)))
            }
            Ok(page) => {
                let items = page.items.iter().map(|item| self.seen(item)).collect();
                let outcome = Outcome::Listed { items, version: page.version };
                (outcome, Ok(page.items.iter().map(|item| MemoryItem::clone(item)).collect()))
            }
            Err(error) => (not_read(&error), Err(error)),
        };
        self.answer(number, outcome);
        result
    }

    /// Moves the cube to another node, counted from zero.
    ///
    /// # Errors
    /// When it did not come about, or nobody knows.
    pub async fn hand_over(&self, to: u32) -> Result<(), CallError> {
        self.hand_over_as(to, self.client.world.next_operation()).await
    }

    pub(crate) async fn hand_over_as(&self, to: u32, operation: u64) -> Result<(), CallError> {
        let node = NodeId::new(node_name(to)).map_err(|error| CallError::Refused(error.into()))?;
        let id = self.id.clone();
        let moved = self
            .client
            .retry(operation, false, move |cubes, context| {
                let (id, node) = (id.clone(), node.clone());
                Box::pin(async move { cubes.hand_over(&context, &id, &node).await })
            })
            .await;
        if moved.is_err() {
            self.client.world.reach("hand-over.failed");
        }
        moved
    }

    /// Asks so many things at once that some of them may be refused; nobody waits for an answer.
    pub(crate) async fn burst(&self, count: u32, operation: u64) {
        let work = |cubes: Cubes, context: TenantContext| -> BoxFuture<'static, _> {
            let cube = cubes.cube(&context, self.id.clone());
            Box::pin(async move { cube.search(SearchRequest::new("noise")).await.map(|_| ()) })
        };
        let node = self.client.number % self.client.world.plan.nodes.max(1);
        let asked = (0..u64::from(count)).map(|number| {
            let id = (operation << TRIES_BITS | number) | 1 << 60;
            let (client, work) = (&self.client, &work);
            async move {
                if let Attempt::Answer(Err(error)) = client.attempt(node, id, work).await {
                    let _ = client.judge(&error);
                }
            }
        });
        futures_util::future::join_all(asked).await;
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        operation: u64,
        may_be_repeated: bool,
        work: impl Fn(CubeHandle) -> BoxFuture<'static, Result<T, Error>>,
    ) -> Result<T, CallError> {
        let id = self.id.clone();
        self.client
            .retry(operation, may_be_repeated, |cubes, context| {
                work(cubes.cube(&context, id.clone()))
            })
            .await
    }

    fn seen(&self, item: &MemoryItem) -> Seen {
        let own = || self.client.context.tenant().to_string();
        Seen {
            id: item.id,
            marker: marker_of(&item.text).unwrap_or_default(),
            revision: item.revision,
            tenant: tenant_of(&item.text).unwrap_or_else(own),
        }
    }

    pub(super) fn invoke(&self, call: Call) -> usize {
        let tenant: &TenantId = self.client.context.tenant();
        self.client.world.invoke(self.client.number, tenant, &self.id, call)
    }

    pub(super) fn answer(&self, number: usize, outcome: Outcome) {
        self.client.world.answer(number, outcome);
    }
}

fn is_kind(error: &CallError, kind: ErrorKind) -> bool {
    matches!(error, CallError::Refused(error) if error.kind() == kind)
}

/// The outcome of a change that failed.
fn failed(error: &CallError) -> Outcome {
    match error {
        CallError::Refused(error) => Outcome::Refused { reason: error.to_string() },
        CallError::Unreachable(reason) => Outcome::Refused { reason: reason.clone() },
        CallError::Unknown(reason) => Outcome::Unknown { reason: reason.clone() },
    }
}

/// The outcome of a read that failed: it had no effect, whatever happened.
fn not_read(error: &CallError) -> Outcome {
    Outcome::Refused { reason: error.to_string() }
}
