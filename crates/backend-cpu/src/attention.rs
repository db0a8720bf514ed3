//! Softmax attention, forward and backward, without ever storing the matrix of logits.
//!
//! ```text
//! L = logit_scale · q kᵀ (masked)     P = softmax(L)     out = alpha · P v
//! ```
//!
//! A task owns one head of one batch item: it decodes keys and values once into packed panels and
//! walks blocks of query rows, skipping keys that the mask hides from the whole block. The backward
//! pass recomputes P from the saved log-sum-exp, and a task owns all query heads that share a
//! key-value head, so that every sum is formed by one task in a fixed order.

use std::ops::Range;

use crate::gemm::{Kernel, Store, TILE_M, TILE_N, TileA, TileC, f32_kernel};
use crate::math;
use crate::parallel::{Scratch, for_each_task};
use crate::simd::simd_fn;
use crate::softmax::{exponentials, scale_by};
use crate::{Error, Input, Output};

/// Sizes and constants of an attention.
///
/// `q [batch, queries, heads, width]`, `k, v [batch, keys, kv_heads, width]`; query head `h` reads
/// key-value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Batch items.
    pub batch: usize,
    /// Positions of the queries.
    pub queries: usize,
    /// Positions of keys and values.
    pub keys: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub width: usize,
    /// Query `i` sees keys `0 ..= i + keys - queries` only.
    pub causal: bool,
    /// Factor of the logits.
    pub logit_scale: f32,
}

/// The gradients of q, k and v, each with its factor.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// Shaped as q.
    pub q: (Output<'a>, f32),
    /// Shaped as k.
    pub k: (Output<'a>, f32),
    /// Shaped as v.
    pub v: (Output<'a>, f32),
}

/// Query rows of a block.
const BLOCK: usize = 32;

impl Attention {
    fn check(&self) -> Result<(), Error> {
        let reason = if self.width == 0 {
            "heads of no elements; a head needs at least one".to_owned()
        } else if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            format!(
                "{} heads cannot share {} key-value heads; heads must be a multiple",
                self.heads, self.kv_heads
            )
        } else if self.causal && self.keys < self.queries {
            format!(
                "causal attention of {} queries needs at least as many keys, found {}",
                self.queries, self.keys
            )
        } else {
            return Ok(());
        };
        Err(Error::Shape { kernel: "attention", reason })
    }

    fn q_len(&self) -> usize {
        self.batch * self.queries * self.heads * self.width
    }

    fn kv_len(&self) -> usize {
        self.batch * self.keys * self.kv_heads * self.width
    }

    /// First element of row `position` of a head in a `[batch, positions, heads, width]` tensor.
    fn row(
        &self,
        positions: usize,
        heads: usize,
        item: usize,
        position: usize,
        head: usize,
    ) -> usize {
        ((item * positions + position) * heads + head) * self.width
    }

    fn q_row(&self, item: usize, position: usize, head: usize) -> usize {
        self.row(self.queries, self.heads, item, position, head)
    }

    fn kv_row(&self, item: usize, position: usize, head: usize) -> usize {
        self.row(self.keys, self.kv_heads, item, position, head)
    }

    /// Keys that query `position` sees.
    fn seen(&self, position: usize) -> usize {
        if self.causal { position + 1 + self.keys - self.queries } else { self.keys }
    }

    /// Which keys of a batch item are not hidden by a mask, and how many there are up to the last;
    /// at least 1, as blocks of logits have a column.
    fn visible<'m>(&self, mask: Option<&'m [u8]>, item: usize) -> (Option<Visible<'m>>, usize) {
        let Some(mask) = mask else { return (None, self.keys) };
        let own = Visible(&mask[item * self.keys * 4..(item + 1) * self.keys * 4]);
        let limit = own.keys().rposition(|seen| seen).map_or(1, |last| last + 1);
        (Some(own), limit)
    }

    fn expect_mask(&self, mask: Option<&[u8]>) -> Result<(), Error> {
        let expected = self.batch * self.keys;
        match mask {
            Some(mask) if mask.len() != expected * 4 => {
                let found = mask.len() / 4;
                Err(Error::Length { kernel: "attention", operand: "mask", found, expected })
            }
            _ => Ok(()),
        }
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let queries = self.queries;
        (0..queries).step_by(BLOCK).map(move |start| start..queries.min(start + BLOCK))
    }

    fn decode_keys(&self, x: Input<'_>, item: usize, head: usize, out: &mut [f32]) {
        for (position, row) in out.chunks_exact_mut(self.width).enumerate() {
            x.decode(self.kv_row(item, position, head), row);
        }
    }

    fn decode_queries(
        &self,
        x: Input<'_>,
        item: usize,
        head: usize,
        rows: Range<usize>,
        out: &mut [f32],
    ) {
        for (position, row) in rows.zip(out.chunks_exact_mut(self.width)) {
            x.decode(self.q_row(item, position, head), row);
        }
    }

    /// `out = alpha · softmax(logit_scale · q kᵀ) v` shaped as q, and the log-sum-exp of the logits
    /// `[batch, heads, queries]` in `lse`. Keys whose little-endian u32 in `mask [batch, keys]` is 0
    /// are not seen; a query that sees none gives 0.
    ///
    /// # Errors
    /// [`Error::Shape`] for sizes without meaning, [`Error::Length`] if operands disagree with them.
    pub fn forward(
        &self,
        q: Input<'_>,
        k: Input<'_>,
        v: Input<'_>,
        mask: Option<&[u8]>,
        alpha: f32,
        mut out: Output<'_>,
        mut lse: Output<'_>,
    ) -> Result<(), Error> {
        self.check()?;
        q.expect("attention", "q", self.q_len())?;
        k.expect("attention", "k", self.kv_len())?;
        v.expect("attention", "v", self.kv_len())?;
        out.expect("attention", "out", self.q_len())?;
        lse.expect("attention", "lse", self.batch * self.heads * self.queries)?;
        self.expect_mask(mask)?;
        let (width, keys) = (self.width, self.keys);
        let (out, lse) = (out.share(), lse.share());
        let kernel = f32_kernel();
        for_each_task(self.batch * self.heads, |task| {
            let (item, head) = (task / self.heads, task % self.heads);
            let kv_head = head / (self.heads / self.kv_heads);
            let (visible, limit) = self.visible(mask, item);
            let mut plain = Scratch::<f32>::new(keys * width);
            self.decode_keys(k, item, kv_head, &mut plain);
            let k = Panels::transposed(&plain, keys, width);
            self.decode_keys(v, item, kv_head, &mut plain);
            let v = Panels::of(&plain, keys, width);
            let mut queries = Scratch::<f32>::new(BLOCK * width);
            let mut mixed = Scratch::<f32>::new(BLOCK * width);
            let mut logits = Scratch::<f32>::new(BLOCK * keys);
            let mut sums = [0.0_f32; BLOCK];
            for rows in self.blocks() {
                let seen = self.seen(rows.end - 1).min(limit);
                let count = rows.len();
                self.decode_queries(q, item, head, rows.clone(), &mut queries[..count * width]);
                let left = rows_of(&queries, width);
                k.multiply(
                    kernel,
                    left,
                    count,
                    width,
                    seen,
                    &mut logits,
                    seen,
                    self.logit_scale,
                    false,
                );
                for (i, row) in logits.chunks_exact_mut(seen.max(1)).take(count).enumerate() {
                    let own = self.seen(rows.start + i);
                    let (live, hidden) = row.split_at_mut(own.min(row.len()));
                    if !hide(live, visible) {
                        row.fill(0.0);
                        sums[i] = f32::NEG_INFINITY;
                        continue;
                    }
                    let (max, sum) = exponentials(live, 1.0);
                    scale_by(live, 1.0 / sum);
                    hidden.fill(0.0);
                    sums[i] = max + sum.ln();
                }
                let left = rows_of(&logits, seen);
                v.multiply(kernel, left, count, seen, width, &mut mixed, width, alpha, false);
                for (position, row) in rows.clone().zip(mixed.chunks_exact(width)) {
                    // SAFETY: this task alone writes this head of this item.
                    unsafe { out.encode(self.q_row(item, position, head), row) };
                }
                // SAFETY: as above.
                unsafe { lse.encode(task * self.queries + rows.start, &sums[..count]) };
            }
        });
        Ok(())
    }

    /// Gradients of `softmax(logit_scale · q kᵀ) v` from the forward results `out` (times
    /// `out_scale`: 1/alpha) and `lse`, and the upstream gradient `dout` (shaped as q), each times its
    /// factor.
    ///
    /// With `dP = dout vᵀ`: `dL = P (dP - Σ dout · out)`, `dq = logit_scale · dL k`,
    /// `dk = logit_scale · dLᵀ q`, `dv = Pᵀ dout`, as in FlashAttention-2 (Dao, arXiv 2307.08691,
    /// algorithm 2).
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn backward(
        &self,
        q: Input<'_>,
        k: Input<'_>,
        v: Input<'_>,
        (out, out_scale): (Input<'_>, f32),
        lse: Input<'_>,
        dout: Input<'_>,
        mask: Option<&[u8]>,
        mut gradients: AttentionGradients<'_>,
    ) -> Result<(), Error> {
        const NAME: &str = "attention gradient";
        self.check()?;
        q.expect(NAME, "q", self.q_len())?;
        k.expect(NAME, "k", self.kv_len())?;
        v.expect(NAME, "v", self.kv_len())?;
        out.expect(NAME, "out", self.q_len())?;
        dout.expect(NAME, "dout", self.q_len())?;
        lse.expect(NAME, "lse", self.batch * self.heads * self.queries)?;
        self.expect_mask(mask)?;
        gradients.q.0.expect(NAME, "dq", self.q_len())?;
        gradients.k.0.expect(NAME, "dk", self.kv_len())?;
        gradients.v.0.expect(NAME, "dv", self.kv_len())?;
        let (width, keys) = (self.width, self.keys);
        let group = self.heads / self.kv_heads;
        let scales = [gradients.q.1, gradients.k.1, gradients.v.1];
        let (dq_out, dk_out, dv_out) =
            (gradients.q.0.share(), gradients.k.0.share(), gradients.v.0.share());
        let kernel = f32_kernel();
        for_each_task(self.batch * self.kv_heads, |task| {
            let (item, kv_head) = (task / self.kv_heads, task % self.kv_heads);
            let (visible, limit) = self.visible(mask, item);
            let mut plain = Scratch::<f32>::new(keys * width);
            self.decode_keys(v, item, kv_head, &mut plain);
            let v_turned = Panels::transposed(&plain, keys, width);
            self.decode_keys(k, item, kv_head, &mut plain);
            let k_turned = Panels::transposed(&plain, keys, width);
            let k_plain = Panels::of(&plain, keys, width);
            let mut dk = Scratch::<f32>::new(keys * width);
            let mut dv = Scratch::<f32>::new(keys * width);
            dk.fill(0.0);
            dv.fill(0.0);
            let mut queries = Scratch::<f32>::new(BLOCK * width);
            let mut upstream = Scratch::<f32>::new(BLOCK * width);
            let mut output = Scratch::<f32>::new(BLOCK * width);
            let mut dq = Scratch::<f32>::new(BLOCK * width);
            let mut p = Scratch::<f32>::new(BLOCK * keys);
            let mut dp = Scratch::<f32>::new(BLOCK * keys);
            let mut sums = [0.0_f32; BLOCK];
            for head in kv_head * group..(kv_head + 1) * group {
                for rows in self.blocks() {
                    let seen = self.seen(rows.end - 1).min(limit);
                    let count = rows.len();
                    let queries = &mut queries[..count * width];
                    let upstream = &mut upstream[..count * width];
                    self.decode_queries(q, item, head, rows.clone(), queries);
                    self.decode_queries(dout, item, head, rows.clone(), upstream);
                    let output = &mut output[..count * width];
                    self.decode_queries(out, item, head, rows.clone(), output);
                    let at = (item * self.heads + head) * self.queries + rows.start;
                    lse.decode(at, &mut sums[..count]);
                    let (scale, left) = (self.logit_scale, rows_of(queries, width));
                    k_turned.multiply(kernel, left, count, width, seen, &mut p, seen, scale, false);
                    let left = rows_of(upstream, width);
                    v_turned.multiply(kernel, left, count, width, seen, &mut dp, seen, 1.0, false);
                    for i in 0..count {
                        let row = i * seen..(i + 1) * seen;
                        let own = self.seen(rows.start + i).min(seen);
                        let part = i * width..(i + 1) * width;
                        let along = out_scale * math::dot(&upstream[part.clone()], &output[part]);
                        let (p, dp) = (&mut p[row.clone()], &mut dp[row]);
                        logit_gradient(p, dp, own, sums[i], along, scale);
                        if let Some(visible) = visible {
                            for ((p, dp), seen) in p.iter_mut().zip(dp).zip(visible.keys()) {
                                if !seen {
                                    (*p, *dp) = (0.0, 0.0);
                                }
                            }
                        }
                    }
                    let right = Panels::of(upstream, count, width);
                    let left = columns_of(&p, seen);
                    right.multiply(kernel, left, seen, count, width, &mut dv, width, 1.0, true);
                    let right = Panels::of(queries, count, width);
                    let left = columns_of(&dp, seen);
                    right.multiply(kernel, left, seen, count, width, &mut dk, width, 1.0, true);
                    let left = rows_of(&dp, seen);
                    k_plain.multiply(
                        kernel, left, count, seen, width, &mut dq, width, scales[0], false,
                    );
                    for (position, row) in rows.zip(dq.chunks_exact(width)) {
                        // SAFETY: this task alone writes these heads of this item.
                        unsafe { dq_out.encode(self.q_row(item, position, head), row) };
                    }
                }
            }
            for (out, sum, scale) in [(dk_out, &mut dk, scales[1]), (dv_out, &mut dv, scales[2])] {
                scale_by(sum, scale);
                for (position, row) in sum.chunks_exact(width).enumerate() {
                    // SAFETY: this task alone writes this key-value head of this item.
                    unsafe { out.encode(self.kv_row(item, position, kv_head), row) };
                }
            }
        });
        Ok(())
    }
}

simd_fn! {
    /// Turns logits into P and dP into `scale · dL`, for the first `own` elements of a row; the
    /// others become zero.
    fn logit_gradient[FMA](
        p: &mut [f32], dp: &mut [f32], own: usize, lse: f32, along: f32, scale: f32,
    ) {
        p[own..].fill(0.0);
        dp[own..].fill(0.0);
        for (p, dp) in p[..own].iter_mut().zip(&mut dp[..own]) {
            *p = math::exp::<FMA>(*p - lse);
            *dp = *p * (*dp - along) * scale;
        }
    }
}

/// The mask of a batch item: little-endian u32, 0 where a key is hidden.
#[derive(Clone, Copy)]
struct Visible<'m>(&'m [u8]);

impl<'m> Visible<'m> {
    fn keys(self) -> impl ExactSizeIterator<Item = bool> + DoubleEndedIterator + use<'m> {
        self.0.as_chunks().0.iter().map(|word| *word != [0; 4])
    }
}

/// Gives hidden keys a logit whose exponential is 0 beside any other; false if no key is left.
fn hide(logits: &mut [f32], visible: Option<Visible<'_>>) -> bool {
    let Some(visible) = visible else { return true };
    let mut any = false;
    for (logit, seen) in logits.iter_mut().zip(visible.keys()) {
        any |= seen;
        if !seen {
            *logit = f32::NEG_INFINITY;
        }
    }
    any
}

/// A row-major matrix as a left operand.
fn rows_of(data: &[f32], width: usize) -> TileA<'_, f32> {
    TileA { data, row_stride: width, depth_stride: 1 }
}

/// The transpose of a row-major matrix as a left operand.
fn columns_of(data: &[f32], width: usize) -> TileA<'_, f32> {
    TileA { data, row_stride: 1, depth_stride: width }
}

/// A right operand `[depth, columns]`, packed for the micro-kernels: panels of [`TILE_N`] columns.
struct Panels {
    data: Scratch<f32>,
    depth: usize,
}

impl Panels {
    fn new(depth: usize, columns: usize) -> Self {
        Self { data: Scratch::new(depth * columns.next_multiple_of(TILE_N)), depth }
    }

    /// Packs a row-major `[depth, columns]`.
    fn of(x: &[f32], depth: usize, columns: usize) -> Self {
        let mut panels = Self::new(depth, columns);
        for (panel, out) in panels.data.chunks_exact_mut((depth * TILE_N).max(1)).enumerate() {
            let first = panel * TILE_N;
            let live = (columns - first).min(TILE_N);
            for (row, out) in out.chunks_exact_mut(TILE_N).enumerate() {
                let (numbers, padding) = out.split_at_mut(live);
                numbers.copy_from_slice(&x[row * columns + first..][..live]);
                padding.fill(0.0);
            }
        }
        panels
    }

    /// Packs the transpose of a row-major `[columns, depth]`.
    fn transposed(x: &[f32], columns: usize, depth: usize) -> Self {
        let mut panels = Self::new(depth, columns);
        for (panel, out) in panels.data.chunks_exact_mut((depth * TILE_N).max(1)).enumerate() {
            let first = panel * TILE_N;
            let live = (columns - first).min(TILE_N);
            for (row, out) in out.chunks_exact_mut(TILE_N).enumerate() {
                let (numbers, padding) = out.split_at_mut(live);
                for (column, out) in numbers.iter_mut().enumerate() {
                    *out = x[(first + column) * depth + row];
                }
                padding.fill(0.0);
            }
        }
        panels
    }

    /// `c = left · self · scale`, added to c if `accumulate`; `depth` and `columns` may be less
    /// than what is packed. Rows of c lie `stride` apart.
    fn multiply(
        &self,
        kernel: Kernel<f32>,
        left: TileA<'_, f32>,
        rows: usize,
        depth: usize,
        columns: usize,
        c: &mut [f32],
        stride: usize,
        scale: f32,
        accumulate: bool,
    ) {
        if rows == 0 || columns == 0 {
            return;
        }
        let tile_rows = rows.div_ceil(rows.div_ceil(TILE_M));
        let store = Store { accumulate, alpha: scale };
        for first in (0..columns).step_by(TILE_N) {
            let b = &self.data[first * self.depth..];
            for row in (0..rows).step_by(tile_rows) {
                let a = TileA { data: &left.data[row * left.row_stride..], ..left };
                let tile = TileC { data: &mut c[row * stride + first..], stride };
                let live = (columns - first).min(TILE_N);
                kernel(a, b, tile, (rows - row).min(tile_rows), live, depth, store);
            }
        }
    }
}
