//! Which steps of a sitting are recorded op by op.

use std::time::Duration;

use onesigma_backend::Span;

/// Steps before the first one that is recorded: they find their memory and fill caches.
const WARM_UP: u64 = 3;

/// A window of steps and the spans from it.
#[derive(Debug)]
pub(super) struct Recording {
    first: u64,
    end: u64,
    /// Steps of this sitting so far.
    seen: u64,
    /// Steps that were recorded.
    count: u64,
    spans: Vec<Span>,
}

impl Recording {
    /// `steps` of the `left` ones: the last ones, where they are too few for a warm-up.
    pub(super) fn new(left: u64, steps: u64) -> Self {
        let first = WARM_UP.min(left.saturating_sub(steps));
        Self { first, end: first + steps, seen: 0, count: 0, spans: Vec::new() }
    }

    /// Whether the next step is recorded.
    pub(super) fn is_on(&self) -> bool {
        (self.first..self.end).contains(&self.seen)
    }

    /// Steps until recording begins or ends, if it is not over.
    pub(super) fn until_border(&self) -> Option<u64> {
        let border = if self.seen < self.first { self.first } else { self.end };
        border.checked_sub(self.seen).filter(|&steps| steps > 0)
    }

    /// Takes in the spans of `steps` steps, none if they were not recorded.
    pub(super) fn note(&mut self, steps: u64, spans: Vec<Span>) {
        if self.is_on() {
            self.count += steps;
        }
        self.seen += steps;
        // Each call counts time from its own first span.
        let before = self.spans.last().map_or(Duration::ZERO, |span| span.start + span.elapsed);
        self.spans
            .extend(spans.into_iter().map(|span| Span { start: span.start + before, ..span }));
    }

    /// The spans in the order of time, and the number of steps they are from.
    pub(super) fn into_spans(self) -> (Vec<Span>, u64) {
        (self.spans, self.count)
    }
}

#[cfg(test)]
mod tests {
    use onesigma_graph::EntryId;

    use super::*;

    #[test]
    fn the_window_follows_the_warm_up_where_there_is_room() {
        let borders = |left, steps| {
            let recording = Recording::new(left, steps);
            (recording.first, recording.end)
        };
        assert_eq!(borders(100, 10), (3, 13));
        assert_eq!(borders(11, 10), (1, 11));
        assert_eq!(borders(4, 10), (0, 10));
    }

    #[test]
    fn calls_end_at_the_borders_and_times_go_on() {
        let ms = Duration::from_millis;
        let span =
            |start| Span { entry: EntryId::new(0), node: 0, start: ms(start), elapsed: ms(2) };
        let mut recording = Recording::new(100, 2);
        assert_eq!((recording.is_on(), recording.until_border()), (false, Some(3)));
        recording.note(3, Vec::new());
        assert_eq!((recording.is_on(), recording.until_border()), (true, Some(2)));
        recording.note(1, vec![span(0), span(2)]);
        assert_eq!((recording.is_on(), recording.until_border()), (true, Some(1)));
        recording.note(1, vec![span(0), span(2)]);
        assert_eq!((recording.is_on(), recording.until_border()), (false, None));
        let (spans, steps) = recording.into_spans();
        let starts: Vec<_> = spans.iter().map(|span| span.start).collect();
        assert_eq!((starts, steps), (vec![ms(0), ms(2), ms(4), ms(6)], 2));
    }
}
