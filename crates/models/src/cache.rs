//! Writing token by token: the keys and values of what was read are kept, so that a further token
//! costs one row of every product instead of the whole sequence.
//!
//! Legend of shapes: B batch, S positions of the cache, N key-value heads, D head size, V vocabulary.

use crate::Result;
use onesigma_format::Conversion;
use onesigma_graph::expr::Term;
use onesigma_graph::{Graph, ValueId};

/// What is known after reading one or more tokens.
#[derive(Clone, Debug)]
pub struct Cached {
    /// Logits `[B, V]` of the next token.
    pub logits: ValueId,
    /// Keys and values of each layer `[B, S, N, D]`, turned by their position if positions are
    /// rotary.
    pub caches: Vec<[ValueId; 2]>,
}

/// One more token for each sequence.
#[derive(Clone, Copy, Debug)]
pub struct CacheStep<'a> {
    /// `U32 [B, 1]`: the token.
    pub token: ValueId,
    /// `U32 [1]`: its position, below S; the same in every sequence.
    pub position: ValueId,
    /// `U32 [B, S]`: 1 at the positions that the token sees, its own among them, 0 elsewhere.
    pub seen: ValueId,
    /// Keys and values of each layer, as [`Cached::caches`].
    pub caches: &'a [[ValueId; 2]],
}

/// The cache `[B, S, N, D]` with `new [B, 1, N, D]` at a position, in the cache's own format. An
/// element-wise choice, which backends do in place.
pub(crate) fn replaced(
    graph: &mut Graph,
    cache: ValueId,
    new: ValueId,
    position: ValueId,
) -> Result<ValueId> {
    let dtype = graph.value(cache).dtype;
    let own = Term::index(1);
    Ok(graph
        .map(&[cache, new, position], |x| {
            own.equal(x[2].clone()).select(x[1].clone(), x[0].clone())
        })?
        .stored_as(dtype, Conversion::SATURATE)
        .named("cache")
        .one()?)
}
