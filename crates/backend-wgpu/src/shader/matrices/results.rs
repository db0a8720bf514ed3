//! What becomes of the sums of a product on cooperative matrices.

use std::fmt::Write;

use super::Tile;
use super::staged::Staged;
use crate::gpu::Matrices;
use crate::ir::Product;
use crate::shader::kernel::Builder;
use crate::shader::scalar_literal;

/// Statements that write the sums: as they are where the result is F32 and made of whole tiles,
/// else by way of shared memory, where threads take quads of them, scale, round and write them.
pub(super) fn results(
    builder: &mut Builder<'_>,
    op: &Product,
    device: Matrices,
    tile: Tile,
    marked: &[&Staged],
) -> String {
    let whole = op.m.is_multiple_of(tile.bm) && op.n.is_multiple_of(tile.bn);
    let direct = op.result.is_f32() && whole && builder.is_whole(op.out);
    let written = match direct {
        true => direct_results(builder, op, device, tile),
        false => patched_results(builder, op, device, tile),
    };
    match marked.is_empty() {
        true => written,
        false => written + &repair(builder, op, device, tile, direct, marked),
    }
}

/// Statements that write the sums by way of shared memory.
fn patched_results(
    builder: &mut Builder<'_>,
    op: &Product,
    Matrices { edge, lanes }: Matrices,
    tile: Tile,
) -> String {
    let mut write = String::new();
    let _ = writeln!(write, "    if (row < {}u && column < {}u) {{", op.m, op.n);
    let _ = writeln!(write, "        let quad = {};", quad(op));
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
    let (across, quads) = (edge / 4, edge * edge / 4);
    let (down, aside) = (tile.sm / edge, tile.sn / edge);
    let mut cases = String::new();
    for part in 0..down * aside {
        let _ = writeln!(
            cases,
            "            case {part}u: {{ coopStoreT(sum{}_{}, &result_tile[own_patch], {across}u); }}",
            part / aside,
            part % aside
        );
    }
    let mut written = String::new();
    for taken in (0..quads).step_by(lanes) {
        let own = if quads < lanes { format!("if (lane < {quads}u) ") } else { String::new() };
        let _ = writeln!(
            written,
            "        {own}{{ write_quad(batch, row + {}u, column, result_tile[own_patch + lane + {taken}u]); }}",
            taken / across
        );
    }
    // `groups.z` is 1, which no compiler knows: unrolled, the loop is more than a cache of
    // instructions holds.
    format!(
        "    let own_patch = subgroup * {quads}u;\n    \
         for (var part = 0u; part < {parts}u * groups.z; part++) {{\n        \
             switch part {{\n{cases}            default: {{}}\n        }}\n        \
             workgroupBarrier();\n        \
             let row = first_row + own_row + part / {aside}u * {edge}u + lane / {across}u;\n        \
             let column = first_column + own_column + part % {aside}u * {edge}u + 4u * (lane % {across}u);\n\
             {written}        workgroupBarrier();\n    \
         }}\n",
        parts = down * aside
    )
}

/// The quad of the result at `row` and `column`.
fn quad(op: &Product) -> String {
    format!("(batch * {}u + row * {}u + column) / 4u", op.m * op.n, op.n)
}

/// Statements for operands whose NaN are not in the sums: where a thread has seen one, its workgroup
/// looks for them and puts NaN into their rows and columns of the result, which is written by
/// then. No subgroup may come apart before its last cooperative matrix is stored.
fn repair(
    builder: &mut Builder<'_>,
    op: &Product,
    Matrices { lanes, .. }: Matrices,
    tile: Tile,
    direct: bool,
    marked: &[&Staged],
) -> String {
    let terms: Vec<String> = marked
        .iter()
        .map(|staged| match staged.name {
            "left" => "result_tile[own_row]".to_owned(),
            _ => {
                let each = [0, 1, 2, 3]
                    .map(|n| format!("result_tile[{}u + own_column + {n}u].x", tile.bm));
                format!("vec4<f32>({})", each.join(", "))
            }
        })
        .collect();
    let mut put = String::new();
    if direct {
        let x = builder.bind_chunks(op.out, "vec4<f32>");
        let _ = writeln!(put, "    x{x}[quad] = select(x{x}[quad], not_a_number(), is_nan);");
    } else {
        builder.round(&mut put, &op.result, "not_a_number()", None, "quad", "r");
        let x = builder.bind(op.out);
        let codes = format!("select(x{x}_codes(quad), r_codes, is_nan)");
        put.push_str(&builder.store(op.out, "quad", &codes));
    }
    builder.library.math();
    builder.library.add(
        "repair_quad",
        format!(
            "fn repair_quad(batch: u32, row: u32, column: u32, own_row: u32, own_column: u32) {{\n    \
             let is_nan = ({}) != vec4<f32>();\n    \
             if (row >= {}u || column >= {}u || !any(is_nan)) {{ return; }}\n    \
             let quad = {};\n{put}}}\n",
            terms.join(" + "),
            op.m,
            op.n,
            quad(op)
        ),
    );
    let indent = "        ";
    let Tile { bm, bn, .. } = tile;
    let find: String = marked
        .iter()
        .map(|staged| staged.find(if staged.name == "left" { 0 } else { bm }, indent))
        .collect();
    format!(
        "    if (thread == 0u) {{ any_nan.x = atomicLoad(&nan_seen[0]); }}\n    \
         if (workgroupUniformLoad(&any_nan).x != 0u) {{\n\
         {find}{indent}workgroupBarrier();\n{indent}storageBarrier();\n\
         {indent}for (var n = thread; n < {quads}u; n += {threads}u) {{\n\
         {indent}    let row = n / {across}u;\n\
         {indent}    let column = 4u * (n % {across}u);\n\
         {indent}    repair_quad(batch, first_row + row, first_column + column, row, column);\n\
         {indent}}}\n    }}\n",
        quads = bm * bn / 4,
        threads = tile.subgroups() * lanes,
        across = bn / 4,
    )
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
