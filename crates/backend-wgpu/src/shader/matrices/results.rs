//! What becomes of the sums of a product on cooperative matrices.

use std::fmt::Write;

use super::Tile;
use super::staged::Staged;
use crate::gpu::Matrices;
use crate::ir::Product;
use crate::shader::kernel::Builder;
use crate::shader::scalar_literal;

/// Quads of a row of a patch, where a subgroup's sums lie for the threads to take.
pub(super) fn patch(edge: usize) -> usize {
    edge / 4 + 1
}

/// Statements that write the sums: as they are where the result is F32 and made of whole tiles,
/// else by way of shared memory, where threads take quads of them, scale, round and write them.
///
/// Of `marked` operands NaN are not in the sums. Where a thread has seen one, its workgroup looks for
/// them and takes the second way with them.
pub(super) fn results(
    builder: &mut Builder<'_>,
    op: &Product,
    device: Matrices,
    tile: Tile,
    marked: &[&Staged],
) -> String {
    let whole = op.m.is_multiple_of(tile.bm) && op.n.is_multiple_of(tile.bn);
    let direct = op.result.is_f32() && whole && builder.is_whole(op.out);
    let plain = match direct {
        true => direct_results(builder, op, device, tile),
        false => patched_results(builder, op, device, tile, direct, &[]),
    };
    if marked.is_empty() {
        return plain;
    }
    let indent = "        ";
    let clear: String = marked.iter().map(|staged| staged.clear_marks(indent)).collect();
    let find: String = marked.iter().map(|staged| staged.find(indent)).collect();
    let repaired = patched_results(builder, op, device, tile, direct, marked);
    format!(
        "    if ((seen & 0x80808080u) != 0u) {{ atomicStore(&nan_seen, 1u); }}\n    \
         workgroupBarrier();\n    \
         if (thread == 0u) {{ any_nan = atomicLoad(&nan_seen); }}\n    \
         if (workgroupUniformLoad(&any_nan) != 0u) {{\n{clear}{indent}workgroupBarrier();\n\
         {find}{indent}workgroupBarrier();\n{repaired}    }} else {{\n{plain}    }}\n"
    )
}

/// Statements that write the sums by way of shared memory.
fn patched_results(
    builder: &mut Builder<'_>,
    op: &Product,
    Matrices { edge, lanes }: Matrices,
    tile: Tile,
    direct: bool,
    marked: &[&Staged],
) -> String {
    write_quad(builder, op, direct);
    if !marked.is_empty() {
        mark_values(builder, marked);
    }
    let (across, patch) = (edge / 4, patch(edge));
    let quads = edge * across;
    let mut text = String::new();
    let _ = writeln!(text, "    let own_patch = subgroup * {}u;", edge * patch);
    for i in 0..tile.sm / edge {
        for j in 0..tile.sn / edge {
            let _ = writeln!(
                text,
                "    coopStoreT(sum{i}_{j}, &result_tile[own_patch], {patch}u);\n    workgroupBarrier();"
            );
            for taken in (0..quads).step_by(lanes) {
                let row_in_patch = format!("lane / {across}u + {}u", taken / across);
                let row = format!("own_row + {}u + {row_in_patch}", i * edge);
                let column = format!("own_column + {}u + 4u * (lane % {across}u)", j * edge);
                let value = format!(
                    "result_tile[own_patch + ({row_in_patch}) * {patch}u + lane % {across}u]"
                );
                let value = match marked.is_empty() {
                    true => value,
                    false => format!("marked({row}, {column}, {value})"),
                };
                let own =
                    if quads < lanes { format!("if (lane < {quads}u) ") } else { String::new() };
                let _ = writeln!(
                    text,
                    "    {own}{{ write_quad(batch, first_row + {row}, first_column + {column}, {value}); }}"
                );
            }
            text.push_str("    workgroupBarrier();\n");
        }
    }
    text
}

/// The function that writes a quad of sums, if it lies within the result.
fn write_quad(builder: &mut Builder<'_>, op: &Product, direct: bool) {
    let mut write = String::new();
    let _ = writeln!(write, "    if (row < {}u && column < {}u) {{", op.m, op.n);
    let _ = writeln!(
        write,
        "        let quad = (batch * {}u + row * {}u + column) / 4u;",
        op.m * op.n,
        op.n
    );
    if direct {
        let x = builder.bind_chunks(op.out, "vec4<f32>");
        let alpha = scalar_literal(op.result.alpha);
        let _ = writeln!(write, "        x{x}[quad] = {alpha} * value;");
    } else {
        builder.round(&mut write, &op.result, "value", None, "quad", "r");
        let store = builder.store(op.out, "quad", "r_codes");
        write.push_str(&store);
    }
    write.push_str("    }\n");
    builder.library.add(
        "write_quad",
        format!(
            "fn write_quad(batch: u32, row: u32, column: u32, value: vec4<f32>) {{\n{write}}}\n"
        ),
    );
}

/// The function that puts NaN in the place of values whose row or column has one.
fn mark_values(builder: &mut Builder<'_>, marked: &[&Staged]) {
    let terms: Vec<String> = marked
        .iter()
        .map(|staged| match staged.name {
            "left" => "vec4<u32>(atomicLoad(&left_nan[row]))".to_owned(),
            name => {
                let each = [0, 1, 2, 3].map(|n| format!("atomicLoad(&{name}_nan[column + {n}u])"));
                format!("vec4<u32>({})", each.join(", "))
            }
        })
        .collect();
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

/// Statements that store the sums in the result.
fn direct_results(
    builder: &mut Builder<'_>,
    op: &Product,
    Matrices { edge, .. }: Matrices,
    tile: Tile,
) -> String {
    let x = builder.bind_chunks(op.out, "vec4<f32>");
    let mut text = String::new();
    for i in 0..tile.sm / edge {
        for j in 0..tile.sn / edge {
            let row = format!("(first_row + own_row + {}u)", i * edge);
            let column = format!("(first_column + own_column + {}u)", j * edge);
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
