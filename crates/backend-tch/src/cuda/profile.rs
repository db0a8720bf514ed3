//! Times of instructions, one by one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Times by entry and instruction.
#[derive(Debug, Default)]
pub(crate) struct Profile(RefCell<BTreeMap<(String, usize), Times>>);

#[derive(Debug)]
struct Times {
    label: String,
    milliseconds: Vec<f32>,
}

impl Profile {
    /// Adds a measurement.
    pub(crate) fn add(&self, entry: &str, at: usize, label: &str, milliseconds: f32) {
        let mut times = self.0.borrow_mut();
        let own = times
            .entry((entry.to_owned(), at))
            .or_insert_with(|| Times { label: label.to_owned(), milliseconds: Vec::new() });
        own.milliseconds.push(milliseconds);
    }

    /// The median time of each instruction.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from("median times in ms");
        let mut total = 0.0;
        for ((entry, _), Times { label, milliseconds }) in self.0.borrow().iter() {
            let mut sorted = milliseconds.clone();
            sorted.sort_by(f32::total_cmp);
            let median = sorted[sorted.len() / 2];
            total += median;
            let _ = write!(text, "\n{median:>10.4}  {entry}  {label}");
        }
        let _ = write!(text, "\n{total:>10.4}  in all");
        text
    }
}
