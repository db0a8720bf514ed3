//! Shape and type inference: what an op makes of its operands, or a precise refusal.

use crate::{DType, Error, Op, Result, Role, Shape, Value};

/// Shape, element type and default role of one result.
pub(crate) struct Inferred {
    pub shape: Shape,
    pub dtype: DType,
    pub role: Role,
}

impl Inferred {
    fn new(shape: Shape, dtype: DType, role: Role) -> Vec<Self> {
        vec![Self { shape, dtype, role }]
    }

    fn activation(shape: Shape) -> Vec<Self> {
        Self::new(shape, DType::F32, Role::Activation)
    }
}

/// The operands of a node under construction, with everything that an error message names.
struct Operands<'a> {
    node: &'a str,
    op: &'static str,
    values: &'a [&'a Value],
}

impl Operands<'_> {
    fn shape(&self, n: usize) -> &Shape {
        &self.values[n].shape
    }

    fn wrong_shape(&self, expected: impl Into<String>) -> Error {
        let found: Vec<String> = self.values.iter().map(|value| value.shape.to_string()).collect();
        Error::Shape {
            node: self.node.to_owned(),
            op: self.op,
            found: found.join(" and "),
            expected: expected.into(),
        }
    }

    fn attribute(
        &self,
        name: &'static str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Error {
        Error::Attribute {
            node: self.node.to_owned(),
            op: self.op,
            attribute: name,
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn count(&self, allowed: &[usize], expected: &'static str) -> Result<()> {
        if allowed.contains(&self.values.len()) {
            return Ok(());
        }
        Err(Error::Arity {
            node: self.node.to_owned(),
            op: self.op,
            found: self.values.len(),
            expected,
        })
    }

    fn float(&self, n: usize) -> Result<()> {
        self.typed(n, "a float format", |dtype| dtype.format().is_some())
    }

    fn floats(&self) -> Result<()> {
        (0..self.values.len()).try_for_each(|n| self.float(n))
    }

    fn integer(&self, n: usize) -> Result<()> {
        self.typed(n, "U32", |dtype| dtype == DType::U32)
    }

    fn typed(&self, n: usize, expected: &'static str, ok: impl Fn(DType) -> bool) -> Result<()> {
        let found = self.values[n].dtype;
        if ok(found) {
            return Ok(());
        }
        Err(Error::ElementType {
            node: self.node.to_owned(),
            op: self.op,
            operand: n,
            found,
            expected,
        })
    }

    fn same_shape(&self, a: usize, b: usize) -> Result<()> {
        if self.shape(a) == self.shape(b) {
            return Ok(());
        }
        Err(self.wrong_shape(format!("operands {a} and {b} of one shape")))
    }

    fn vector_of_last(&self, n: usize) -> Result<()> {
        let last = self.shape(0).last();
        if self.shape(n).dims() == [last] {
            return Ok(());
        }
        Err(self.wrong_shape(format!("operand {n} of shape [{last}]")))
    }

    fn at_least_rank(&self, n: usize, rank: usize) -> Result<()> {
        if self.shape(n).rank() >= rank {
            return Ok(());
        }
        Err(self.wrong_shape(format!("operand {n} with at least {rank} axes")))
    }

    fn scalar(&self, n: usize) -> Result<()> {
        if self.shape(n).rank() == 0 {
            return Ok(());
        }
        Err(self.wrong_shape(format!("operand {n} a scalar")))
    }

    fn broadcast_to(&self, shape: &Shape) -> Result<()> {
        for value in self.values {
            if value.shape.broadcast(shape).as_ref() != Some(shape) {
                return Err(self.wrong_shape(format!("operands that broadcast to {shape}")));
            }
        }
        Ok(())
    }
}

pub(crate) fn infer(node: &str, op: &Op, values: &[&Value]) -> Result<Vec<Inferred>> {
    let on = Operands { node, op: op.name(), values };
    match op {
        Op::Slot(_) => on.count(&[], "none").map(|()| Vec::new()),
        Op::MatMul { transpose_left, transpose_right } => {
            on.count(&[2], "2")?;
            on.floats()?;
            matmul(&on, *transpose_left, *transpose_right)
        }
        Op::Map { expr, shape } => {
            expression(&on, expr, shape)?;
            Ok(Inferred::activation(shape.clone()))
        }
        Op::Reduce { expr, shape, axes, keep_dims, .. } => {
            expression(&on, expr, shape)?;
            let sorted = axes.windows(2).all(|pair| pair[0] < pair[1]);
            if !sorted || axes.iter().any(|&axis| axis >= shape.rank()) {
                let expected = format!("ascending axes below {}", shape.rank());
                return Err(on.attribute("axes", format!("{axes:?}"), expected));
            }
            Ok(Inferred::activation(shape.reduced(axes, *keep_dims)))
        }
        Op::Gather => {
            on.count(&[2], "2: table, ids")?;
            on.float(0)?;
            on.integer(1)?;
            if on.shape(0).rank() != 2 {
                return Err(on.wrong_shape("a table [rows, d]"));
            }
            let mut dims = on.shape(1).dims().to_vec();
            dims.push(on.shape(0).last());
            Ok(Inferred::activation(dims.into()))
        }
        Op::ScatterAdd { rows } => {
            on.count(&[2], "2: updates, ids")?;
            on.float(0)?;
            on.integer(1)?;
            on.at_least_rank(0, 1)?;
            let dims = on.shape(0).dims();
            if dims[..dims.len() - 1] != *on.shape(1).dims() {
                return Err(on.wrong_shape("updates [.., d] and ids [..]"));
            }
            Ok(Inferred::activation([*rows, on.shape(0).last()].into()))
        }
        Op::Permute { .. } | Op::Reshape { .. } | Op::Slice { .. } | Op::Concat { .. } => {
            let shape = movement(&on, op)?;
            Ok(Inferred::new(shape, values[0].dtype, values[0].role))
        }
        Op::Cast { to } => {
            on.count(&[1], "1")?;
            on.float(0)?;
            if to.format().is_none() {
                return Err(on.attribute("to", to, "a float format"));
            }
            Ok(Inferred::new(on.shape(0).clone(), *to, values[0].role))
        }
        Op::Random { shape, .. } => {
            on.count(&[0], "none")?;
            Ok(Inferred::activation(shape.clone()))
        }
        _ => fused(&on, op),
    }
}

fn matmul(on: &Operands<'_>, transpose_left: bool, transpose_right: bool) -> Result<Vec<Inferred>> {
    on.at_least_rank(0, 2)?;
    on.at_least_rank(1, 2)?;
    let split = |n: usize, transposed: bool| {
        let (lead, matrix) = on.shape(n).dims().split_at(on.shape(n).rank() - 2);
        if transposed { (lead, matrix[1], matrix[0]) } else { (lead, matrix[0], matrix[1]) }
    };
    let (lead, m, k) = split(0, transpose_left);
    let (right_lead, right_k, n) = split(1, transpose_right);
    if k != right_k {
        return Err(on.wrong_shape(format!(
            "one contracted size, found {k} on the left{} and {right_k} on the right{}",
            if transpose_left { " (transposed)" } else { "" },
            if transpose_right { " (transposed)" } else { "" },
        )));
    }
    let shared = right_lead.is_empty() && (!transpose_left || lead.is_empty());
    if lead != right_lead && !shared {
        return Err(on.wrong_shape("equal leading axes, or one matrix on the right"));
    }
    let mut dims = lead.to_vec();
    dims.extend([m, n]);
    Ok(Inferred::activation(dims.into()))
}

fn expression(on: &Operands<'_>, expr: &crate::expr::Expr, shape: &Shape) -> Result<()> {
    if expr.inputs() != on.values.len() {
        return Err(on.attribute(
            "expr",
            format!("a function of {} operands", expr.inputs()),
            format!("one of {}", on.values.len()),
        ));
    }
    if !expr.is_valid(shape.rank()) {
        return Err(on.attribute("expr", expr.instrs().len(), "references to earlier steps only"));
    }
    on.broadcast_to(shape)
}

fn movement(on: &Operands<'_>, op: &Op) -> Result<Shape> {
    if !matches!(op, Op::Concat { .. }) {
        on.count(&[1], "1")?;
    }
    if on.values.is_empty() {
        return on.count(&[1], "at least 1").map(|()| Shape::scalar());
    }
    let dims = on.shape(0).dims();
    match op {
        Op::Permute { axes } => {
            let mut sorted = axes.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..dims.len()) {
                let expected = format!("a permutation of 0..{}", dims.len());
                return Err(on.attribute("axes", format!("{axes:?}"), expected));
            }
            Ok(axes.iter().map(|&axis| dims[axis]).collect::<Vec<_>>().into())
        }
        Op::Reshape { shape } => {
            if shape.numel() != on.shape(0).numel() {
                let expected = format!("{} elements", on.shape(0).numel());
                return Err(on.attribute("shape", shape, expected));
            }
            Ok(shape.clone())
        }
        Op::Slice { axis, start, len } => {
            let end = start.saturating_add(*len);
            if *axis >= dims.len() || end > dims[*axis] {
                let found = format!("axis {axis}, {start}..{end}");
                return Err(on.attribute(
                    "range",
                    found,
                    format!("a range within {}", on.shape(0)),
                ));
            }
            let mut dims = dims.to_vec();
            dims[*axis] = *len;
            Ok(dims.into())
        }
        Op::Concat { axis } => {
            if *axis >= dims.len() {
                return Err(on.attribute("axis", axis, format!("an axis below {}", dims.len())));
            }
            let mut result = dims.to_vec();
            result[*axis] = 0;
            for value in on.values {
                let mut probe = value.shape.dims().to_vec();
                if value.dtype != on.values[0].dtype {
                    return Err(on.wrong_shape("operands of one element type"));
                }
                if probe.len() != dims.len() {
                    return Err(on.wrong_shape("operands with one number of axes"));
                }
                result[*axis] = result[*axis].saturating_add(probe[*axis]);
                probe[*axis] = dims[*axis];
                if probe != dims {
                    return Err(on.wrong_shape(format!("equal sizes except along axis {axis}")));
                }
            }
            Ok(result.into())
        }
        _ => Err(on.wrong_shape("a movement op")),
    }
}

fn fused(on: &Operands<'_>, op: &Op) -> Result<Vec<Inferred>> {
    let like = |n: usize| Inferred::activation(on.shape(n).clone());
    match op {
        Op::Softmax { .. } => {
            on.count(&[1], "1")?;
            on.floats()?;
            on.at_least_rank(0, 1)?;
            Ok(like(0))
        }
        Op::SoftmaxGrad { .. } => {
            on.count(&[2], "2: y, dy")?;
            on.floats()?;
            on.at_least_rank(0, 1)?;
            on.same_shape(0, 1)?;
            Ok(like(0))
        }
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => {
            if matches!(op, Op::LayerNorm { .. }) {
                on.count(&[1, 2, 3], "1 to 3: x, weight, bias")?;
            } else {
                on.count(&[1, 2], "1 or 2: x, weight")?;
            }
            on.floats()?;
            on.at_least_rank(0, 1)?;
            (1..on.values.len()).try_for_each(|n| on.vector_of_last(n))?;
            Ok(like(0))
        }
        Op::LayerNormGrad { .. } | Op::RmsNormGrad { .. } => {
            if matches!(op, Op::LayerNormGrad { .. }) {
                on.count(&[2, 3, 4], "2 to 4: x, dy, weight, bias")?;
            } else {
                on.count(&[2, 3], "2 or 3: x, dy, weight")?;
            }
            on.floats()?;
            on.at_least_rank(0, 1)?;
            on.same_shape(0, 1)?;
            (2..on.values.len()).try_for_each(|n| on.vector_of_last(n))?;
            let mut results = like(0);
            for n in 2..on.values.len() {
                results.extend(like(n));
            }
            Ok(results)
        }
        Op::Attention { .. } | Op::AttentionGrad { .. } => attention(on, op),
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => {
            let forward = matches!(op, Op::CrossEntropy { .. });
            let mask = if forward { 2 } else { 3 };
            if forward {
                on.count(&[2, 3], "2 or 3: logits, targets, mask")?;
            } else {
                on.count(&[3, 4], "3 or 4: logits, targets, d_loss, mask")?;
                on.float(2)?;
                on.scalar(2)?;
            }
            on.float(0)?;
            on.integer(1)?;
            on.at_least_rank(0, 1)?;
            let dims = on.shape(0).dims();
            if dims[..dims.len() - 1] != *on.shape(1).dims() {
                return Err(on.wrong_shape("logits [.., classes] and targets [..]"));
            }
            if on.values.len() > mask {
                on.integer(mask)?;
                on.same_shape(1, mask)?;
            }
            if forward {
                return Ok(Inferred::new(Shape::scalar(), DType::F32, Role::Statistic));
            }
            Ok(like(0))
        }
        Op::AdamW(_) => {
            on.count(&[7], "7: w, gradient, m, v, lr, step, grad_factor")?;
            for n in [0, 1, 2, 3, 4, 6] {
                on.float(n)?;
            }
            on.integer(5)?;
            (1..4).try_for_each(|n| on.same_shape(0, n))?;
            (4..7).try_for_each(|n| on.scalar(n))?;
            let roles = [Role::MasterWeight, Role::FirstMoment, Role::SecondMoment];
            Ok([0, 2, 3]
                .into_iter()
                .zip(roles)
                .map(|(n, role)| Inferred {
                    shape: on.shape(0).clone(),
                    dtype: on.values[n].dtype,
                    role,
                })
                .collect())
        }
        _ => Err(on.wrong_shape("a fused op")),
    }
}

fn attention(on: &Operands<'_>, op: &Op) -> Result<Vec<Inferred>> {
    let forward = matches!(op, Op::Attention { .. });
    if forward {
        on.count(&[3, 4], "3 or 4: q, k, v, mask")?;
    } else {
        on.count(&[6, 7], "6 or 7: q, k, v, output, lse, d_output, mask")?;
    }
    let mask = if forward { 3 } else { 6 };
    (0..mask).try_for_each(|n| on.float(n))?;
    on.same_shape(1, 2)?;
    let expected =
        "q [batch, seq, heads, d], k and v [batch, keys, kv_heads, d], kv_heads dividing heads";
    let (&[batch, seq, heads, d], &[k_batch, keys, kv_heads, k_d]) =
        (on.shape(0).dims(), on.shape(1).dims())
    else {
        return Err(on.wrong_shape(expected));
    };
    let causal =
        matches!(op, Op::Attention { causal: true, .. } | Op::AttentionGrad { causal: true, .. });
    if batch != k_batch || d != k_d || kv_heads == 0 || heads % kv_heads != 0 {
        return Err(on.wrong_shape(expected));
    }
    if causal && keys < seq {
        return Err(on.wrong_shape("at least as many keys as queries in causal attention"));
    }
    if on.values.len() > mask {
        on.integer(mask)?;
        if on.shape(mask).dims() != [batch, keys] {
            let expected = format!("operand {mask}, the mask, of shape [{batch}, {keys}]");
            return Err(on.wrong_shape(expected));
        }
    }
    let lse = Shape::from([batch, heads, seq]);
    if forward {
        let mut results = Inferred::activation(on.shape(0).clone());
        results.extend(Inferred::new(lse, DType::F32, Role::Statistic));
        return Ok(results);
    }
    on.same_shape(0, 3)?;
    on.same_shape(0, 5)?;
    if *on.shape(4) != lse {
        return Err(on.wrong_shape(format!("operand 4 of shape {lse}")));
    }
    Ok([0, 1, 2].into_iter().flat_map(|n| Inferred::activation(on.shape(n).clone())).collect())
}
