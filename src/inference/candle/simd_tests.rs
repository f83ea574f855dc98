use candle_core::{Device, Tensor};

use super::aligned::AlignedFloats;
use super::simd::{Isa, LayerNorm, PANEL, Product, Start};

/// Repeatable values in `[-1, 1)`.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn gelu(values: Vec<f64>) -> Vec<f64> {
    let len = values.len();
    let values = Tensor::from_vec(values, len, &Device::Cpu).unwrap();
    values.gelu_erf().unwrap().to_vec1().unwrap()
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let error = (f64::from(*found) - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{found} differs from {expected}");
    }
}

/// Multiplies in double precision from the same packed panels.
fn product_of(left: &[f32], panels: &[f32], rows: usize, depth: usize, columns: usize) -> Vec<f64> {
    let value = |row: usize, column: usize| -> f64 {
        let panel = &panels[column / PANEL * depth * PANEL..];
        (0..depth)
            .map(|d| {
                f64::from(left[row * depth + d]) * f64::from(panel[d * PANEL + column % PANEL])
            })
            .sum()
    };
    (0..rows * columns).map(|at| value(at / columns, at % columns)).collect()
}

#[test]
fn product_agrees_with_double_precision() {
    for isa in Isa::available() {
        for (rows, depth, columns) in
            [(1, 1, 32), (5, 7, 64), (14, 384, 32), (33, 400, 96), (70, 33, 32)]
        {
            let left = noise(rows * depth, 1);
            let panels = noise(depth * columns, 2);
            let bias = noise(columns, 3);
            let expected = product_of(&left, &panels, rows, depth, columns);
            for start in [Start::Zero, Start::Bias(&bias), Start::Accumulate] {
                for with_gelu in [false, true] {
                    let mut out = AlignedFloats::copied(&noise(rows * columns, 4));
                    let begin = |at: usize| match start {
                        Start::Zero => 0.0,
                        Start::Bias(bias) => f64::from(bias[at % columns]),
                        Start::Accumulate => f64::from(out[at]),
                    };
                    let mut expected: Vec<f64> =
                        expected.iter().enumerate().map(|(at, value)| value + begin(at)).collect();
                    if with_gelu {
                        expected = gelu(expected);
                    }
                    isa.multiply(Product {
                        left: &left,
                        left_stride: depth,
                        rows,
                        depth,
                        panels: &panels,
                        panel_stride: depth * PANEL,
                        depth_stride: PANEL,
                        panel_count: columns / PANEL,
                        start,
                        out: &mut out,
                        out_stride: columns,
                        gelu: with_gelu,
                    });
                    assert_close(&out, &expected, 1e-5);
                }
            }
        }
    }
}

#[test]
fn gelu_is_accurate() {
    // One row of depth one: the product is the bias itself.
    let columns = 32 * 4096;
    let bias: Vec<f32> = (0..columns).map(|at| (at as f32 / columns as f32 - 0.5) * 24.0).collect();
    let expected = gelu(bias.iter().map(|value| f64::from(*value)).collect());
    let panels = vec![0.0; columns];
    for isa in Isa::available() {
        let mut out = AlignedFloats::zeroed(columns);
        isa.multiply(Product {
            left: &[1.0],
            left_stride: 1,
            rows: 1,
            depth: 1,
            panels: &panels,
            panel_stride: PANEL,
            depth_stride: PANEL,
            panel_count: columns / PANEL,
            start: Start::Bias(&bias),
            out: &mut out,
            out_stride: columns,
            gelu: true,
        });
        assert_close(&out, &expected, 1.5e-7);
    }
}

#[test]
fn softmax_ignores_padding() {
    for isa in Isa::available() {
        for len in [1, 15, 16, 17, 32, 50] {
            let stride = 64;
            let scores = noise(3 * stride, 5).iter().map(|score| score * 60.0).collect::<Vec<_>>();
            let mut weights = scores.clone();
            let mut inverse_sums = [0.0; 3];
            isa.softmax(&mut weights, stride, 0.5, len, &mut inverse_sums);
            for row in 0..3 {
                let scores = &scores[row * stride..][..len];
                let top = scores.iter().fold(f32::MIN, |top, score| top.max(*score));
                let exponentials: Vec<f64> =
                    scores.iter().map(|score| f64::from((score - top) * 0.5).exp()).collect();
                let sum: f64 = exponentials.iter().sum();
                assert_close(&weights[row * stride..][..len], &exponentials, 1e-6);
                assert_close(&inverse_sums[row..=row], &[1.0 / sum], 1e-6);
            }
        }
    }
}

#[test]
fn layer_norm_agrees_with_double_precision() {
    let width = 96;
    let (row, added) = (noise(width, 6), noise(width, 7));
    let (gain, offset) = (noise(width, 8), noise(width, 9));
    let sums: Vec<f64> = row.iter().zip(&added).map(|(a, b)| f64::from(a + b)).collect();
    let mean = sums.iter().sum::<f64>() / width as f64;
    let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / width as f64;
    let expected: Vec<f64> = (0..width)
        .map(|at| (sums[at] - mean) / variance.sqrt() * f64::from(gain[at]) + f64::from(offset[at]))
        .collect();
    let norm = LayerNorm {
        gain: AlignedFloats::copied(&gain),
        offset: AlignedFloats::copied(&offset),
        epsilon: 1e-12,
    };
    for isa in Isa::available() {
        let mut row = row.clone();
        isa.add_layer_norm(&mut row, &added, &norm);
        assert_close(&row, &expected, 1e-6);
    }
}

#[test]
#[should_panic(expected = "assertion failed")]
fn product_refuses_short_buffers() {
    let mut out = [0.0; PANEL];
    Isa::detect().multiply(Product {
        left: &[1.0; 4],
        left_stride: 4,
        rows: 2,
        depth: 4,
        panels: &[0.0; 4 * PANEL],
        panel_stride: 4 * PANEL,
        depth_stride: PANEL,
        panel_count: 1,
        start: Start::Zero,
        out: &mut out,
        out_stride: PANEL,
        gelu: false,
    });
}
