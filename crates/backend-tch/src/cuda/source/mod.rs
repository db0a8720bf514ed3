//! CUDA C for the kernels of a program: readable templates with generated parts.
//!
//! Sizes, strides, scales and formats are constants of the source, so that NVRTC can unroll and
//! vectorise; equal sources are compiled once.

pub(crate) mod codec;
pub(crate) mod cross_entropy;
pub(crate) mod expression;
pub(crate) mod flat;
pub(crate) mod group;
pub(crate) mod matmul;
pub(crate) mod movement;
pub(crate) mod reduce;
pub(crate) mod rows;
pub(crate) mod scatter;
pub(crate) mod tile;

/// Types, codecs and functions that every kernel uses.
pub(crate) const PRELUDE: &str = include_str!("../kernels/prelude.cu");

/// A kernel: its source behind the prelude, and how it is launched. The entry is called `kernel`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Kernel {
    /// What it does, for profiles.
    pub label: String,
    /// CUDA C, without the prelude.
    pub source: String,
    /// Number of its parameters: pointers, all of them.
    pub params: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
}

/// An f32 constant with exactly these bits.
pub(crate) fn literal(value: f64) -> String {
    let value = value as f32;
    match value {
        value if value.is_finite() && value.fract() == 0.0 && value.abs() < 1e6 => {
            // -0.0 keeps its sign.
            format!("{value:?}f")
        }
        value => format!("__uint_as_float(0x{:08x}u)", value.to_bits()),
    }
}

/// The text of a template with `$name$` replaced.
pub(crate) fn fill(template: &str, parts: &[(&str, String)]) -> String {
    let mut text = template.to_owned();
    for (name, part) in parts {
        text = text.replace(&format!("${name}$"), part);
    }
    debug_assert!(!text.contains('$'), "a part is missing in:\n{text}");
    text
}

/// `const void* __restrict__ x0, ...`, the parameter list of a kernel.
pub(crate) fn parameters(inputs: usize, outputs: usize, draws: bool) -> String {
    let mut list: Vec<String> = Vec::new();
    list.extend((0..inputs).map(|n| format!("const void* __restrict__ x{n}")));
    list.extend((0..outputs).map(|n| format!("void* __restrict__ y{n}")));
    if draws {
        list.extend(["const void* seed".to_owned(), "const void* step".to_owned()]);
    }
    list.join(", ")
}

/// Blocks of `threads` threads for `work` items.
pub(crate) fn blocks(work: usize, threads: usize) -> u32 {
    work.div_ceil(threads).max(1) as u32
}
