//! Convolution along one axis.
//!
//! It is built of core ops: shifted slices of the padded input beside each other (one for each tap
//! of the kernel), one matrix product, and the bias. The product alone carries the scales, so the
//! backward pass, which autodiff makes of the parts, carries them where a kernel of its own would.

use crate::linear::add_bias;
use crate::{Constraint, Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, Shape, ValueId};

/// Options of [`conv1d`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Conv1d {
    /// Distance between neighbouring outputs.
    pub stride: usize,
    /// Zeros before the first and after the last element.
    pub padding: usize,
    /// Distance between neighbouring taps.
    pub dilation: usize,
    /// Groups of channels that do not mix; divides both numbers of channels.
    pub groups: usize,
    /// Powers `p` in [`Conv1d::scales`].
    pub scale_power: [f64; 3],
    /// Over output and input gradient.
    pub constraint: Constraint,
}

impl Default for Conv1d {
    /// Stride 1, no padding, dilation 1, one group, `to_output_scale`.
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
            scale_power: [0.5; 3],
            constraint: Constraint::ToOutputScale,
        }
    }
}

/// The sizes of one convolution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConvSizes {
    /// Sequences; 1 for an input without that axis.
    pub batch: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Length of the input.
    pub length: usize,
    /// Channels of the output.
    pub fan_out: usize,
    /// Channels of the input that one output reads: `channels / groups`.
    pub fan_in: usize,
    /// Taps of the kernel.
    pub kernel: usize,
    /// Length of the output.
    pub out_length: usize,
}

impl Conv1d {
    /// Sizes for an input `[batch, channels, length]` or `[channels, length]` and a weight
    /// `[fan_out, channels / groups, kernel]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an option of 0, shapes with other axes, groups that divide no
    /// channels, or a kernel longer than the padded input.
    pub fn sizes(&self, input: &Shape, weight: &Shape) -> Result<ConvSizes> {
        for (argument, value) in
            [("stride", self.stride), ("dilation", self.dilation), ("groups", self.groups)]
        {
            if value == 0 {
                return Err(wrong(argument, value, "at least 1"));
            }
        }
        let (batch, channels, length) = match *input.dims() {
            [batch, channels, length] => (batch, channels, length),
            [channels, length] => (1, channels, length),
            _ => return Err(wrong("input", input, "[batch, channels, length]")),
        };
        let &[fan_out, fan_in, kernel] = weight.dims() else {
            return Err(wrong("weight", weight, "[fan_out, fan_in, kernel]"));
        };
        let groups = self.groups;
        if !fan_out.is_multiple_of(groups) || fan_in.checked_mul(groups) != Some(channels) {
            let expected =
                format!("[fan_out, {channels}/{groups}, kernel], fan_out a multiple of {groups}");
            return Err(wrong("weight", weight, &expected));
        }
        let reach = kernel.saturating_sub(1).saturating_mul(self.dilation).saturating_add(1);
        let padded = length.saturating_add(self.padding.saturating_mul(2));
        if kernel == 0 || reach > padded {
            let expected = format!("a kernel that reaches over at most {padded} elements");
            return Err(wrong("weight", weight, &expected));
        }
        let out_length = (padded - reach) / self.stride + 1;
        Ok(ConvSizes { batch, channels, length, fan_out, fan_in, kernel, out_length })
    }

    /// Scales of output, input, weight and bias: `alpha = (fan_in kernel)^-1/2`,
    /// `beta = [(stride groups / (fan_out kernel))^1/2, n^-1/2, n^-1/2]`, where `n` is
    /// `batch * out_length`, with the constraint over the first two. Source: unit-scaling 0.3.5
    /// `conv1d`.
    ///
    /// # Errors
    /// As [`Constraint::common`].
    pub fn scales(&self, sizes: ConvSizes) -> Result<Scales> {
        let [p0, p1, p2] = self.scale_power;
        let scale = |size: f64, power: f64| size.max(f64::MIN_POSITIVE).powf(-power);
        let forward = scale((sizes.fan_in * sizes.kernel) as f64, p0);
        let spread = (sizes.fan_out * sizes.kernel) as f64 / (self.stride * self.groups) as f64;
        let parameters = scale((sizes.batch * sizes.out_length) as f64, p2);
        let beta = [scale(spread, p1), parameters, parameters];
        Scales::constrained("conv1d", forward, &beta, 1, self.constraint)
    }
}

/// `alpha (conv(x, W) + b)`: `x [batch, channels, length]` (or without `batch`), `weight [fan_out,
/// channels / groups, kernel]`, `bias [fan_out]`, result `[batch, fan_out, out_length]` with
/// `out_length = (length + 2 padding - dilation (kernel - 1) - 1) / stride + 1`. Scales:
/// [`Conv1d::scales`], exact in `mu-s`; regular: all 1.
///
/// # Errors
/// As [`Conv1d::sizes`] and [`Conv1d::scales`]; [`Error::Graph`] for a bias of another shape.
pub fn conv1d(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    options: Conv1d,
) -> Result<ValueId> {
    let (shape, groups) = (graph.shape(x).clone(), options.groups);
    let sizes = options.sizes(&shape, graph.shape(weight))?;
    let scales = p.scheme().linear.choose(|| options.scales(sizes))?;
    let ConvSizes { batch, channels, length, fan_out, fan_in, kernel, out_length } = sizes;
    graph.scoped("conv1d", |graph| {
        let x = graph.reshape(x, [batch, channels, length])?;
        let taps = taps(graph, x, sizes, options)?; // (B, C, K, T)
        // Rows of the product are positions, its columns the channels of a group with their taps.
        let split = graph.reshape(taps, [batch, groups, fan_in * kernel, out_length])?;
        let rows = graph.permute(split, &[1, 0, 3, 2])?; // (G, B, T, F K)
        let (size, tall) = (fan_in * kernel, batch * out_length);
        let (rows, kernels) = match groups {
            1 => (graph.reshape(rows, [tall, size])?, graph.reshape(weight, [fan_out, size])?),
            _ => (
                graph.reshape(rows, [groups, tall, size])?,
                graph.reshape(weight, [groups, fan_out / groups, size])?,
            ),
        };
        let product = Op::MatMul { transpose_left: false, transpose_right: true };
        let y = graph
            .op(product, &[rows, kernels])
            .alpha(scales.alpha)
            .beta(&[scales.beta(0), scales.beta(1)])
            .named("product")
            .one()?; // (G, B T, O/G)
        let y = graph.reshape(y, [groups, batch, out_length, fan_out / groups])?;
        let y = graph.permute(y, &[1, 0, 3, 2])?; // (B, G, O/G, T)
        let y = graph.reshape(y, [batch, fan_out, out_length])?;
        let y = match bias {
            None => y,
            Some(bias) => {
                let column = graph.reshape(bias, [fan_out, 1])?;
                add_bias(graph, y, column, &scales)?
            }
        };
        let mut dims = shape.dims().to_vec();
        let rank = dims.len();
        dims[rank - 2..].copy_from_slice(&[fan_out, out_length]);
        Ok(graph.reshape(y, dims)?)
    })
}

/// What each tap sees of the padded input, one slice beside the other: `[batch, channels, kernel,
/// out_length]`.
fn taps(graph: &mut Graph, x: ValueId, sizes: ConvSizes, options: Conv1d) -> Result<ValueId> {
    let ConvSizes { batch, channels, length, kernel, out_length, .. } = sizes;
    let Conv1d { stride, padding, dilation, .. } = options;
    // A slice takes whole strides, so the last one may reach beyond the padding.
    let span = out_length * stride;
    let needed = (kernel - 1) * dilation + span;
    let behind = needed.saturating_sub(padding + length);
    let mut parts = Vec::new();
    for (zeros, value) in [(padding, None), (0, Some(x)), (behind, None)] {
        match value {
            Some(value) => parts.push(value),
            None if zeros > 0 => parts.push(graph.fill([batch, channels, zeros], 0.0)?),
            None => {}
        }
    }
    let padded = match parts[..] {
        [only] => only,
        _ => graph.op(Op::Concat { axis: 2 }, &parts).named("padded").one()?,
    };
    let mut taps = Vec::with_capacity(kernel);
    for tap in 0..kernel {
        let slice = Op::Slice { axis: 2, start: tap * dilation, len: span };
        let mut seen = graph.op(slice, &[padded]).named("tap").one()?; // (B, C, T stride)
        if stride > 1 {
            seen = graph.reshape(seen, [batch, channels, out_length, stride])?;
            let first = Op::Slice { axis: 3, start: 0, len: 1 };
            seen = graph.op(first, &[seen]).named("tap").one()?; // (B, C, T, 1)
        }
        taps.push(graph.reshape(seen, [batch, channels, 1, out_length])?);
    }
    Ok(match taps[..] {
        [only] => only,
        _ => graph.op(Op::Concat { axis: 2 }, &taps).named("taps").one()?,
    })
}

fn wrong(argument: &'static str, found: impl ToString, expected: &str) -> Error {
    let (found, expected) = (found.to_string(), expected.to_owned());
    Error::Argument { op: "conv1d", argument, found, expected }
}
