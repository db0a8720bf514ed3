//! Where the time of a run goes.

use std::time::Instant;

use onesigma_backend::Span;
use onesigma_graph::EntryId;

/// Spans while they are recorded.
#[derive(Default)]
pub(crate) struct Recorder {
    origin: Option<Instant>,
    spans: Vec<Span>,
}

impl Recorder {
    pub(crate) fn add(&mut self, entry: EntryId, node: usize, began: Instant) {
        let elapsed = began.elapsed();
        let start = began.duration_since(*self.origin.get_or_insert(began));
        self.spans.push(Span { entry, node, start, elapsed });
    }

    pub(crate) fn into_spans(self) -> Vec<Span> {
        self.spans
    }
}
