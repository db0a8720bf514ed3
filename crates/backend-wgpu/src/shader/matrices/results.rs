//! What becomes of the sums of a product on cooperative matrices.

use std::fmt::Write;

use super::staged::Staged;
use super::{EDGE, Tile};
use crate::ir::Product;
use crate::shader::kernel::Builder;
use crate::shader::scalar_literal;

/// Quads of a row of a patch, where a subgroup's sums lie for the threads to take.
pub(super) const PATCH: usize = EDGE / 4 + 1;

/// Statements that write the sums: as they are where the result is F32 and made of whole tiles,
/// else by way of shared memory, where threads take quads of them, scale, round and write them.
pub(super) fn results(
    builder: &mut Builder<'_>,
    op: &Product,
    tile: Tile,
    left: &Staged,
    right: &Staged,
) -> String {
    let marked = left.has_marks || right.has_marks;
    let whole = op.m.is_multiple_of(tile.bm) && op.n.is_multiple_of(tile.bn);
    if op.result.is_f32() && whole && !marked && builder.is_whole(op.out) {
        return direct_results(builder, op, tile);
    }
    let mut write = String::new();
    let _ = writeln!(write, "    if (row < {}u && column < {}u) {{", op.m, op.n);
    let _ = writeln!(
        write,
        "        let quad = (batch * {}u + row * {}u + column) / 4u;",
        op.m * op.n,
        op.n
    );
    builder.round(&mut write, &op.result, "value", None, "quad", "r");
    let store = builder.store(op.out, "quad", "r_codes");
    write.push_str(&store);
    write.push_str("    }\n");
    builder.library.add(
        "write_quad",
        format!(
            "fn write_quad(batch: u32, row: u32, column: u32, value: vec4<f32>) {{\n{write}}}\n"
        ),
    );
    if marked {
        let mut terms = Vec::new();
        if left.has_marks {
            terms.push("vec4<u32>(atomicLoad(&left_nan[row]))".to_owned());
        }
        if right.has_marks {
            let each = [0, 1, 2, 3].map(|lane| format!("atomicLoad(&right_nan[column + {lane}u])"));
            terms.push(format!("vec4<u32>({})", each.join(", ")));
        }
        builder.library.math();
        builder.library.add(
            "marked",
            format!(
                "fn marked(row: u32, column: u32, value: vec4<f32>) -> vec4<f32> {{\n    \
                 return select(value, not_a_number(), ({}) != vec4<u32>(0u));\n}}\n",
                terms.join(" | ")
            ),
        );
    }
    let mut text = String::new();
    let _ = writeln!(text, "    let own_patch = subgroup * {}u;", EDGE * PATCH);
    for i in 0..tile.sm / EDGE {
        for j in 0..tile.sn / EDGE {
            let _ = writeln!(
                text,
                "    coopStoreT(sum{i}_{j}, &result_tile[own_patch], {PATCH}u);\n    workgroupBarrier();"
            );
            for half in 0..2 {
                let row = format!("own_row + {}u + lane / 4u + {}u", i * EDGE, 8 * half);
                let column = format!("own_column + {}u + 4u * (lane % 4u)", j * EDGE);
                let value = format!(
                    "result_tile[own_patch + (lane / 4u + {}u) * {PATCH}u + lane % 4u]",
                    8 * half
                );
                let value = match marked {
                    true => format!("marked({row}, {column}, {value})"),
                    false => value,
                };
                let _ = writeln!(
                    text,
                    "    write_quad(batch, first_row + {row}, first_column + {column}, {value});"
                );
            }
            text.push_str("    workgroupBarrier();\n");
        }
    }
    text
}

/// Statements that store the sums in the result.
fn direct_results(builder: &mut Builder<'_>, op: &Product, tile: Tile) -> String {
    let x = builder.bind_chunks(op.out, "vec4<f32>");
    let mut text = String::new();
    for i in 0..tile.sm / EDGE {
        for j in 0..tile.sn / EDGE {
            let row = format!("(first_row + own_row + {}u)", i * EDGE);
            let column = format!("(first_column + own_column + {}u)", j * EDGE);
            let sum = match op.result.alpha == 1.0 {
                true => format!("sum{i}_{j}"),
                false => format!("{} * sum{i}_{j}", scalar_literal(op.result.alpha)),
            };
            let _ = writeln!(
                text,
                "    coopStoreT({sum}, &x{x}[batch * {}u + {row} * {}u + {column} / 4u], {}u);",
                op.m * op.n / 4,
                op.n / 4,
                op.n / 4
            );
        }
    }
    text
}
