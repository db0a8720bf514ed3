//! `Map` and `Cast`: one expression over strided operands, rounded into the result's format.

use crate::expression::{CHUNK, Expression, Source, Space};
use crate::parallel::{TASK_ELEMENTS, for_each_task};
use crate::softmax::scale_by;
use crate::tensor::SharedOutput;

/// `out[i] = alpha · expression(operands at i)` for the first `len` elements of a space.
pub(crate) fn map(
    expression: &Expression,
    space: &Space,
    len: usize,
    sources: &[Source<'_>],
    bases: &[usize],
    alpha: f32,
    out: SharedOutput<'_>,
) {
    for_each_task(len.div_ceil(TASK_ELEMENTS), |task| {
        let mut registers = expression.registers();
        let uniforms = expression.uniforms(sources, bases, Some(out));
        let end = len.min((task + 1) * TASK_ELEMENTS);
        for start in (task * TASK_ELEMENTS..end).step_by(CHUNK) {
            let count = (end - start).min(CHUNK);
            let values = expression.eval(
                space,
                sources,
                bases,
                &uniforms,
                Some(out),
                start,
                count,
                &mut registers,
            );
            if alpha != 1.0 {
                scale_by(values, alpha);
            }
            // SAFETY: tasks write disjoint ranges.
            unsafe { out.encode(start, values) };
        }
    });
}
