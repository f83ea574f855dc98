//! One node: store, embedder and actors, wired together from settings or from parts.

use std::sync::Arc;

use memcube_actors::{
    BlobParts, Cubes, Error, NodeParts, Result,
    cluster::ClusterParts,
    embedder::{Embedder, EmbedderHandle},
    environment::Environment,
    housekeeper::{Chore, HouseRules},
    inference::{
        Engine, InferenceParts,
        remote::{RemoteModel, RemoteParts},
    },
    scheduler::{SchedulerParts, jobs::JobRules, log::DecisionLog},
    storage::{
        InMemoryStore, InMemoryVectorIndex, SharedStore, SharedVectorIndex,
        blobs::{Plain, Seal},
        gate,
    },
    vectors::{self, VectorParts},
};

use memcube_schemas::{NodeId, limits::TABLE_IN_RAM_ROWS_MAX};
use object_store::ObjectStore;

use crate::{
    cluster,
    decision_log::FileLog,
    environment,
    inference::{self, openai::OpenAiModel},
    settings::{EmbedderKind, InferenceKind, Settings, StoreKind, VectorsKind},
    storage::{self, EmbeddedStore},
};

/// The name of a node that is alone with its store.
const ALONE: &str = "local";

/// The model that answers.
enum LanguageModel {
    Here(Arc<dyn Engine>),
    Elsewhere(Arc<dyn RemoteModel>),
}

/// Builds a node. Parts that are not given come from the settings.
#[derive(Default)]
pub struct NodeBuilder {
    settings: Settings,
    store: Option<SharedStore>,
    environment: Option<Environment>,
    embedder: Option<Arc<dyn Embedder>>,
    model: Option<LanguageModel>,
    cluster: Option<(NodeId, ClusterParts)>,
    vectors: Option<SharedVectorIndex>,
    objects: Option<Arc<dyn ObjectStore>>,
    seal: Option<Arc<dyn Seal>>,
    chores: Vec<Arc<dyn Chore>>,
}

impl NodeBuilder {
    /// With these settings.
    #[must_use]
    pub fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// With this state store in place of the one that the settings name.
    #[must_use]
    pub fn with_store(mut self, store: SharedStore) -> Self {
        self.store = Some(store);
        self
    }

    /// With this clock, randomness and compute.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// With this embedder in place of the one that the settings name.
    #[must_use]
    pub fn with_embedder(mut self, embedder: Arc<dyn Embedder>) -> Self {
        self.embedder = Some(embedder);
        self
    }

    /// With this language model in place of the one that the settings name.
    #[must_use]
    pub fn with_engine(mut self, engine: Arc<dyn Engine>) -> Self {
        self.model = Some(LanguageModel::Here(engine));
        self
    }

    /// With this language model, which runs elsewhere, in place of the one that the settings name.
    #[must_use]
    pub fn with_remote_model(mut self, model: Arc<dyn RemoteModel>) -> Self {
        self.model = Some(LanguageModel::Elsewhere(model));
        self
    }

    /// As one of several nodes over the same store, under this id, in place of what the settings
    /// say in `[cluster]`. Every node needs an id of its own, and a store that all of them share.
    #[must_use]
    pub fn with_cluster(mut self, node: NodeId, parts: ClusterParts) -> Self {
        self.cluster = Some((node, parts));
        self
    }

    /// With this vector index in place of the one that the settings name.
    #[must_use]
    pub fn with_vectors(mut self, index: SharedVectorIndex) -> Self {
        self.vectors = Some(index);
        self
    }

    /// With this object store for blobs in place of the one that the settings name.
    #[must_use]
    pub fn with_objects(mut self, objects: Arc<dyn ObjectStore>) -> Self {
        self.objects = Some(objects);
        self
    }

    /// With blobs sealed by this, for example encrypted under a key of each tenant. What was stored
    /// under another seal cannot be read, and cubes then come from their rows.
    #[must_use]
    pub fn with_seal(mut self, seal: Arc<dyn Seal>) -> Self {
        self.seal = Some(seal);
        self
    }

    /// With something more for the housekeeper to do now and then.
    #[must_use]
    pub fn with_chore(mut self, chore: Arc<dyn Chore>) -> Self {
        self.chores.push(chore);
        self
    }

    /// Opens the store, loads the model, starts the actors.
    ///
    /// # Errors
    /// `Unavailable` when the data directory or the model cannot be opened or an address is taken,
    /// `Invalid` when the settings of the cluster make no sense, with what to do about it.
    pub async fn start(self) -> Result<Node> {
        let Self { settings, store, environment, embedder, cluster, vectors, objects, .. } = self;
        let (seal, chores) = (self.seal.unwrap_or_else(|| Arc::new(Plain)), self.chores);
        let environment = environment.unwrap_or_else(environment::system);
        // First, because what is wrong with it is found at once.
        let (node, cluster) = match cluster {
            Some((node, parts)) => (node, Some(parts)),
            None => {
                let kind = store.is_none().then_some(settings.store.kind);
                match cluster::open(&settings, kind).await? {
                    Some((node, parts)) => (node, Some(parts)),
                    None => (NodeId::new(ALONE)?, None),
                }
            }
        };
        let store = match store {
            Some(store) => store,
            None => {
                let store = open_store(&settings).await?;
                storage::blobs::clean_up(&settings)?;
                store
            }
        };
        gate::pass(&*store, &environment).await?;
        let model = match embedder {
            Some(model) => Some(model),
            None => open_embedder(&settings).await?,
        };
        let embedder = match model {
            Some(model) => Some(EmbedderHandle::spawn(model, environment.clone()).await?),
            None => None,
        };
        let language_model = match self.model {
            Some(model) => Some(model),
            None => open_language_model(&settings).await?,
        };
        let vectors = match vectors {
            Some(index) => Some(index),
            None => open_vectors(&settings, &environment).await?,
        };
        let blobs = blob_parts(&settings, objects, seal)?;
        let cubes = Cubes::start(NodeParts {
            store: Arc::clone(&store),
            environment: environment.clone(),
            embedder,
            node,
            passivate_after_ms: settings.cube.passivate_after_ms,
            hot_cubes_max: settings.cube.hot_cubes_max,
            jobs: JobRules::default(),
            cluster,
            vectors: vectors.map(|index| vector_parts(&settings, index)),
            blobs,
        })
        .await?;
        if let Some(model) = language_model {
            serve(&cubes, &settings, model).await?;
        }
        if settings.scheduler.enabled {
            cubes.schedule(scheduler_parts(&settings)?).await?;
        }
        let rules = HouseRules { feed_keep_ms: settings.feed.keep_ms, ..HouseRules::default() };
        cubes.keep_house(rules, chores).await?;
        Ok(Node { cubes, store, environment, settings })
    }
}

/// A running node. Dropping it does not stop it: call [`Node::shut_down`].
pub struct Node {
    cubes: Cubes,
    store: SharedStore,
    environment: Environment,
    settings: Settings,
}

impl Node {
    /// Starts to build a node.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// The cubes of this node: where memories are added and found.
    #[must_use]
    pub const fn cubes(&self) -> &Cubes {
        &self.cubes
    }

    /// The state store of this node.
    #[must_use]
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Time and randomness of this node.
    #[must_use]
    pub const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The settings it was started with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Lets every cube finish, then ends the actors.
    pub async fn shut_down(&self) {
        self.cubes.shut_down().await;
    }
}

/// Opens the state store that the settings name.
pub(crate) async fn open_store(settings: &Settings) -> Result<SharedStore> {
    match settings.store.kind {
        StoreKind::InMemory => Ok(Arc::new(InMemoryStore::default())),
        StoreKind::Embedded => {
            let dir = settings.store.data_dir.join("state");
            let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&dir)).await;
            let opened = opened.map_err(|error| Error::internal(error.to_string()))?;
            Ok(Arc::new(opened?))
        }
        StoreKind::FoundationDb => Ok(storage::open_foundationdb(&settings.store).await?),
    }
}

async fn open_embedder(settings: &Settings) -> Result<Option<Arc<dyn Embedder>>> {
    match settings.embedder.kind {
        EmbedderKind::None => Ok(None),
        EmbedderKind::Minilm => {
            let settings = settings.embedder.clone();
            let opened = tokio::task::spawn_blocking(move || inference::open(&settings)).await;
            opened.map_err(|error| Error::internal(error.to_string()))?.map(Some)
        }
    }
}

async fn open_language_model(settings: &Settings) -> Result<Option<LanguageModel>> {
    match settings.inference.kind {
        InferenceKind::None => Ok(None),
        InferenceKind::Local => {
            let settings = settings.inference.clone();
            let opened = tokio::task::spawn_blocking(move || inference::open_local(&settings));
            let engine = opened.await.map_err(|error| Error::internal(error.to_string()))??;
            Ok(Some(LanguageModel::Here(engine)))
        }
        InferenceKind::OpenAi => {
            let model = OpenAiModel::of(&settings.inference)?;
            Ok(Some(LanguageModel::Elsewhere(Arc::new(model))))
        }
    }
}

/// A language model with the tiers that the settings describe. Blobs in a bucket get copies on the
/// disk of this node.
fn inference_parts(settings: &Settings, engine: Arc<dyn Engine>) -> Result<InferenceParts> {
    let are_in_bucket = storage::blobs::are_in_bucket(settings)?;
    let disk = if are_in_bucket {
        let directory = settings.store.data_dir.join("blocks");
        Some((storage::blobs::open_directory(&directory)?, settings.inference.disk_bytes_max))
    } else {
        None
    };
    let cache = settings.inference.cache();
    let segment_repair_tokens = settings.inference.repair_tokens();
    let parts = InferenceParts { cache, segment_repair_tokens, ..InferenceParts::new(engine) };
    Ok(InferenceParts { disk, objects_are_local: !are_in_bucket, ..parts })
}

fn blob_parts(
    settings: &Settings,
    objects: Option<Arc<dyn ObjectStore>>,
    seal: Arc<dyn Seal>,
) -> Result<Option<BlobParts>> {
    let objects = match objects {
        Some(objects) => Some(objects),
        None => storage::blobs::open(settings)?,
    };
    Ok(objects.map(|objects| BlobParts {
        objects,
        seal,
        grace_ms: settings.blobs.grace_ms,
        snapshot_items_min: settings.blobs.snapshot_items_min,
    }))
}

pub(crate) fn scheduler_parts(settings: &Settings) -> Result<SchedulerParts> {
    let log = settings.scheduler.decision_log.as_deref().map(FileLog::open).transpose()?;
    let log = log.map(|log| Arc::new(log) as Arc<dyn DecisionLog>);
    Ok(SchedulerParts { rules: settings.scheduler.rules(), log })
}

async fn serve(cubes: &Cubes, settings: &Settings, model: LanguageModel) -> Result<()> {
    match model {
        LanguageModel::Here(engine) => {
            cubes.serve_model(inference_parts(settings, engine)?).await?;
        }
        LanguageModel::Elsewhere(model) => {
            let parts = RemoteParts { model, settings: settings.inference.remote() };
            cubes.serve_remote_model(parts).await?;
        }
    }
    Ok(())
}

fn vector_parts(settings: &Settings, index: SharedVectorIndex) -> VectorParts {
    let settings = vectors::VectorSettings {
        apply_after_ms: settings.vectors.apply_after_ms,
        optimize_after_ms: settings.vectors.optimize_after_ms,
        cold_cube_items_min: settings.vectors.cold_cube_items_min,
    };
    VectorParts { index, settings }
}

/// The vector index that the settings name, if they name one.
pub(crate) async fn open_vectors(
    settings: &Settings,
    environment: &Environment,
) -> Result<Option<SharedVectorIndex>> {
    match settings.vectors.kind {
        VectorsKind::None => Ok(None),
        VectorsKind::InRam => {
            let index = InMemoryVectorIndex::new(environment.clone(), TABLE_IN_RAM_ROWS_MAX);
            Ok(Some(Arc::new(index)))
        }
        VectorsKind::Lance => open_lance(settings).await.map(Some),
    }
}

#[cfg(feature = "lance")]
async fn open_lance(settings: &Settings) -> Result<SharedVectorIndex> {
    let options = storage::LanceOptions {
        directory: if settings.vectors.url.is_empty() {
            settings.store.data_dir.join("vectors")
        } else {
            settings.vectors.url.clone().into()
        },
        approximate_rows_min: settings.vectors.approximate_rows_min,
    };
    Ok(Arc::new(storage::LanceIndex::open(options).await?))
}

#[cfg(not(feature = "lance"))]
#[expect(clippy::unused_async, reason = "as it is with the feature")]
async fn open_lance(_settings: &Settings) -> Result<SharedVectorIndex> {
    Err(Error::invalid(
        "`vectors.kind` is `lance`, which this build leaves out; build with `--features lance`, or \
         set it to `in-ram` or `none`",
    ))
}
