//! The encoder on the CPU: sequences packed without padding, weights packed at load.
//!
//! A pass is run by a team of one or more threads. Each member computes its own share of the
//! attention heads and output columns into buffers the others only read after a barrier, so the
//! team's size does not change a single bit of the result.

use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::aligned::AlignedFloats;
use super::checkpoint::{Checkpoint, HEADS, HIDDEN, LoadError, WIDE};
use super::simd::{Isa, LayerNorm, PANEL, Product, Start};
use super::team::Barrier;

/// Tokens of the sequences one pass may hold; also the longest sequence.
pub(super) const PASS_TOKENS_MAX: usize = 256;
/// Queries whose scores are computed at once, so that they stay in the L1 cache.
const QUERY_BLOCK: usize = 14;

/// The encoder's weights in the layout the kernels read.
pub(super) struct PackedEncoder {
    isa: Isa,
    words: AlignedFloats,
    /// Position embeddings with the only token type used already added.
    positions: AlignedFloats,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    query_key_value: Dense,
    mix: Dense,
    mix_norm: LayerNorm,
    widen: Dense,
    narrow: Dense,
    narrow_norm: LayerNorm,
}

/// A linear layer as panels of 32 columns, each contiguous over the whole depth.
struct Dense {
    panels: AlignedFloats,
    bias: AlignedFloats,
    depth: usize,
}

/// Buffers of one member of a team.
pub(super) struct Workspace {
    private: Private,
    shared: Shared,
}

/// Written and read by their owner only.
struct Private {
    hidden: AlignedFloats,
    query_key_value: AlignedFloats,
    keys: AlignedFloats,
    scores: AlignedFloats,
    added: AlignedFloats,
}

/// Written by their owner, read by the whole team in the next step.
struct Shared {
    context: RwLock<AlignedFloats>,
    dense: RwLock<AlignedFloats>,
    wide: RwLock<AlignedFloats>,
}

impl Workspace {
    pub(super) fn new() -> Self {
        let rows = |width| AlignedFloats::zeroed(PASS_TOKENS_MAX * width);
        Self {
            private: Private {
                hidden: rows(HIDDEN),
                query_key_value: rows(3 * HIDDEN),
                keys: rows(PANEL),
                scores: AlignedFloats::zeroed(QUERY_BLOCK * PASS_TOKENS_MAX),
                added: AlignedFloats::zeroed(HIDDEN),
            },
            shared: Shared {
                context: RwLock::new(rows(HIDDEN)),
                dense: RwLock::new(rows(HIDDEN)),
                wide: RwLock::new(rows(WIDE)),
            },
        }
    }
}

/// The team and the sequences of one pass.
pub(super) struct Pass<'a> {
    barrier: &'a Barrier,
    team: Vec<&'a Shared>,
    sequences: &'a [&'a [u32]],
    tokens: usize,
}

impl<'a> Pass<'a> {
    /// Splits the workspaces of a team into what all see and what each member owns.
    pub(super) fn new(
        barrier: &'a Barrier,
        workspaces: &'a mut [Workspace],
        sequences: &'a [&'a [u32]],
    ) -> (Self, Vec<Member<'a>>) {
        assert_eq!(barrier.size(), workspaces.len());
        let tokens = sequences.iter().map(|sequence| sequence.len()).sum();
        assert!((1..=PASS_TOKENS_MAX).contains(&tokens));
        let mut team = Vec::with_capacity(workspaces.len());
        let mut members = Vec::with_capacity(workspaces.len());
        for (rank, workspace) in workspaces.iter_mut().enumerate() {
            team.push(&workspace.shared);
            members.push(Member { rank, private: &mut workspace.private });
        }
        (Self { barrier, team, sequences, tokens }, members)
    }

    /// The part of `panels` a member works on.
    fn share(&self, rank: usize, panels: usize) -> Range<usize> {
        rank * panels / self.team.len()..(rank + 1) * panels / self.team.len()
    }
}

/// One thread's place in a pass.
pub(super) struct Member<'a> {
    rank: usize,
    private: &'a mut Private,
}

impl PackedEncoder {
    /// Packs the weights of a checkpoint for the fastest instruction set available.
    pub(super) fn load(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let config = &checkpoint.config;
        let words =
            checkpoint.floats("embeddings.word_embeddings.weight", &[config.vocab_size, HIDDEN])?;
        let mut positions = checkpoint.floats(
            "embeddings.position_embeddings.weight",
            &[config.max_position_embeddings, HIDDEN],
        )?;
        positions.truncate(PASS_TOKENS_MAX * HIDDEN);
        let types = checkpoint
            .floats("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, HIDDEN])?;
        for row in positions.chunks_mut(HIDDEN) {
            row.iter_mut().zip(&types).for_each(|(position, kind)| *position += kind);
        }
        Ok(Self {
            isa: Isa::detect(),
            words: AlignedFloats::copied(&words),
            positions: AlignedFloats::copied(&positions),
            norm: load_norm(checkpoint, "embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load(checkpoint, &format!("encoder.layer.{layer}")))
                .collect::<Result<_, _>>()?,
        })
    }

    #[cfg(test)]
    pub(super) fn use_isa(&mut self, isa: Isa) {
        self.isa = isa;
    }

    /// Runs one member's part; the first member returns the mean hidden state per sequence.
    pub(super) fn run(&self, pass: &Pass<'_>, member: Member<'_>) -> Vec<Vec<f32>> {
        let Member { rank, private } = member;
        self.embed_words(pass, private);
        for layer in &self.layers {
            self.attend(pass, rank, layer, private);
            pass.barrier.wait();
            {
                let context: Vec<_> =
                    pass.team.iter().map(|shared| read(&shared.context)).collect();
                let mut dense = write(&pass.team[rank].dense);
                self.multiply_parts(pass, rank, &layer.mix, &context, &mut dense, HIDDEN);
            }
            pass.barrier.wait();
            self.add_norm(pass, private, &layer.mix_norm);
            self.widen(pass, rank, layer, private);
            pass.barrier.wait();
            {
                let wide: Vec<_> = pass.team.iter().map(|shared| read(&shared.wide)).collect();
                let mut dense = write(&pass.team[rank].dense);
                self.multiply_parts(pass, rank, &layer.narrow, &wide, &mut dense, WIDE);
            }
            pass.barrier.wait();
            self.add_norm(pass, private, &layer.narrow_norm);
        }
        if rank == 0 { means(pass.sequences, &private.hidden) } else { Vec::new() }
    }

    fn embed_words(&self, pass: &Pass<'_>, private: &mut Private) {
        let places = pass.sequences.iter().flat_map(|sequence| sequence.iter().enumerate());
        for (row, (position, &token)) in private.hidden.chunks_mut(HIDDEN).zip(places) {
            let word = token as usize * HIDDEN;
            row.copy_from_slice(&self.words[word..word + HIDDEN]);
            let position = position * HIDDEN;
            self.isa.add_layer_norm(row, &self.positions[position..position + HIDDEN], &self.norm);
        }
    }

    /// Computes queries, keys and values of the member's heads and attends with them.
    fn attend(&self, pass: &Pass<'_>, rank: usize, layer: &Layer, private: &mut Private) {
        let heads = pass.share(rank, HEADS);
        let width = heads.len() * PANEL;
        let dense = &layer.query_key_value;
        for part in 0..3 {
            self.isa.multiply(Product {
                left: &private.hidden,
                left_stride: HIDDEN,
                rows: pass.tokens,
                depth: HIDDEN,
                panels: dense.panels_from(part * HEADS + heads.start),
                panel_stride: HIDDEN * PANEL,
                depth_stride: PANEL,
                panel_count: heads.len(),
                start: Start::Bias(&dense.bias[(part * HEADS + heads.start) * PANEL..]),
                out: &mut private.query_key_value[part * width..],
                out_stride: 3 * width,
                gelu: false,
            });
        }
        let mut context = write(&pass.team[rank].context);
        let mut first = 0;
        for sequence in pass.sequences {
            for head in 0..heads.len() {
                let head = Head { first, len: sequence.len(), width, column: head * PANEL };
                self.attend_head(&head, private, &mut context);
            }
            first += sequence.len();
        }
    }

    fn attend_head(&self, head: &Head, private: &mut Private, context: &mut [f32]) {
        let Private { query_key_value, keys, scores, .. } = private;
        let stride = 3 * head.width;
        let queries = &query_key_value[head.first * stride + head.column..];
        let values = &queries[2 * head.width..];
        let padded = head.len.next_multiple_of(PANEL);
        pack_keys(&queries[head.width..], stride, head.len, keys);
        for block in (0..head.len).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(head.len - block);
            self.isa.multiply(Product {
                left: &queries[block * stride..],
                left_stride: stride,
                rows,
                depth: PANEL,
                panels: keys,
                panel_stride: PANEL * PANEL,
                depth_stride: PANEL,
                panel_count: padded / PANEL,
                start: Start::Zero,
                out: scores,
                out_stride: padded,
                gelu: false,
            });
            let mut inverse_sums = [0.0; QUERY_BLOCK];
            let scale = 1.0 / (PANEL as f32).sqrt();
            self.isa.softmax(scores, padded, scale, head.len, &mut inverse_sums[..rows]);
            let out = &mut context[(head.first + block) * head.width + head.column..];
            self.isa.multiply(Product {
                left: scores,
                left_stride: padded,
                rows,
                depth: head.len,
                panels: values,
                panel_stride: 0,
                depth_stride: stride,
                panel_count: 1,
                start: Start::Zero,
                out,
                out_stride: head.width,
                gelu: false,
            });
            for (row, inverse) in out.chunks_mut(head.width).zip(&inverse_sums[..rows]) {
                row[..PANEL].iter_mut().for_each(|value| *value *= inverse);
            }
        }
    }

    /// Multiplies a matrix whose columns are spread over the team by the member's panels.
    fn multiply_parts(
        &self,
        pass: &Pass<'_>,
        rank: usize,
        dense: &Dense,
        parts: &[RwLockReadGuard<'_, AlignedFloats>],
        out: &mut [f32],
        left_columns: usize,
    ) {
        let panels = pass.share(rank, HIDDEN / PANEL);
        for (source, part) in parts.iter().enumerate() {
            let columns = pass.share(source, left_columns / PANEL);
            let width = columns.len() * PANEL;
            self.isa.multiply(Product {
                left: part,
                left_stride: width,
                rows: pass.tokens,
                depth: width,
                panels: &dense.panels_from(panels.start)[columns.start * PANEL * PANEL..],
                panel_stride: dense.depth * PANEL,
                depth_stride: PANEL,
                panel_count: panels.len(),
                start: if source == 0 {
                    Start::Bias(&dense.bias[panels.start * PANEL..])
                } else {
                    Start::Accumulate
                },
                out: &mut *out,
                out_stride: panels.len() * PANEL,
                gelu: false,
            });
        }
    }

    /// Adds the team's dense output to the hidden state and normalises it; every member does
    /// all rows, which is cheaper than sharing them.
    fn add_norm(&self, pass: &Pass<'_>, private: &mut Private, norm: &LayerNorm) {
        let parts: Vec<_> = pass.team.iter().map(|shared| read(&shared.dense)).collect();
        let Private { hidden, added, .. } = private;
        for (index, row) in hidden.chunks_mut(HIDDEN).take(pass.tokens).enumerate() {
            for (rank, part) in parts.iter().enumerate() {
                let columns = pass.share(rank, HIDDEN / PANEL);
                let width = columns.len() * PANEL;
                added[columns.start * PANEL..][..width]
                    .copy_from_slice(&part[index * width..][..width]);
            }
            self.isa.add_layer_norm(row, added, norm);
        }
    }

    fn widen(&self, pass: &Pass<'_>, rank: usize, layer: &Layer, private: &Private) {
        let panels = pass.share(rank, WIDE / PANEL);
        self.isa.multiply(Product {
            left: &private.hidden,
            left_stride: HIDDEN,
            rows: pass.tokens,
            depth: HIDDEN,
            panels: layer.widen.panels_from(panels.start),
            panel_stride: HIDDEN * PANEL,
            depth_stride: PANEL,
            panel_count: panels.len(),
            start: Start::Bias(&layer.widen.bias[panels.start * PANEL..]),
            out: &mut write(&pass.team[rank].wide),
            out_stride: panels.len() * PANEL,
            gelu: true,
        });
    }
}

/// Where one head of one sequence lies in the member's buffers.
struct Head {
    first: usize,
    len: usize,
    width: usize,
    column: usize,
}

/// Transposes keys into panels of 32 keys; keys past the end are zero.
fn pack_keys(keys: &[f32], stride: usize, len: usize, panels: &mut [f32]) {
    for (index, panel) in panels.chunks_mut(PANEL * PANEL).take(len.div_ceil(PANEL)).enumerate() {
        let lanes = PANEL.min(len - index * PANEL);
        if lanes < PANEL {
            panel.fill(0.0);
        }
        for lane in 0..lanes {
            let key = &keys[(index * PANEL + lane) * stride..][..PANEL];
            for (row, value) in panel.chunks_exact_mut(PANEL).zip(key) {
                row[lane] = *value;
            }
        }
    }
}

fn means(sequences: &[&[u32]], hidden: &[f32]) -> Vec<Vec<f32>> {
    let mut rows = hidden.chunks(HIDDEN);
    let mut mean = |sequence: &&[u32]| {
        let mut sum = vec![0.0; HIDDEN];
        for row in rows.by_ref().take(sequence.len()) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        sum.iter_mut().for_each(|sum| *sum /= sequence.len() as f32);
        sum
    };
    sequences.iter().map(&mut mean).collect()
}

impl Layer {
    fn load(checkpoint: &Checkpoint, name: &str) -> Result<Self, LoadError> {
        let attention =
            ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"));
        let dense = |part: &str, rows, depth| {
            Dense::load(checkpoint, &[format!("{name}.{part}")], rows, depth)
        };
        let norm = |part| load_norm(checkpoint, &format!("{name}.{part}"));
        Ok(Self {
            query_key_value: Dense::load(checkpoint, &attention, HIDDEN, HIDDEN)?,
            mix: dense("attention.output.dense", HIDDEN, HIDDEN)?,
            mix_norm: norm("attention.output.LayerNorm")?,
            widen: dense("intermediate.dense", WIDE, HIDDEN)?,
            narrow: dense("output.dense", HIDDEN, WIDE)?,
            narrow_norm: norm("output.LayerNorm")?,
        })
    }
}

impl Dense {
    /// Packs linear layers of equal shape side by side.
    fn load(
        checkpoint: &Checkpoint,
        names: &[String],
        columns: usize,
        depth: usize,
    ) -> Result<Self, LoadError> {
        let mut panels = AlignedFloats::zeroed(names.len() * columns * depth);
        let mut bias = AlignedFloats::zeroed(names.len() * columns);
        for (index, name) in names.iter().enumerate() {
            let weights = checkpoint.floats(&format!("{name}.weight"), &[columns, depth])?;
            let into = &mut panels[index * columns * depth..][..columns * depth];
            for (from, into) in weights.chunks(PANEL * depth).zip(into.chunks_mut(PANEL * depth)) {
                for (lane, column) in from.chunks(depth).enumerate() {
                    column
                        .iter()
                        .enumerate()
                        .for_each(|(step, value)| into[step * PANEL + lane] = *value);
                }
            }
            bias[index * columns..][..columns]
                .copy_from_slice(&checkpoint.floats(&format!("{name}.bias"), &[columns])?);
        }
        Ok(Self { panels, bias, depth })
    }

    fn panels_from(&self, panel: usize) -> &[f32] {
        &self.panels[panel * self.depth * PANEL..]
    }
}

fn load_norm(checkpoint: &Checkpoint, name: &str) -> Result<LayerNorm, LoadError> {
    let floats = |part| checkpoint.floats(&format!("{name}.{part}"), &[HIDDEN]);
    Ok(LayerNorm {
        gain: AlignedFloats::copied(&floats("weight")?),
        offset: AlignedFloats::copied(&floats("bias")?),
        epsilon: checkpoint.config.layer_norm_eps,
    })
}

// A panic while writing leaves plain floats behind; the next pass overwrites them.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
