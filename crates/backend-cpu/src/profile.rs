//! Where the time of a run goes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::instruction::Instruction;

/// Time by kind of instruction and sizes of its operands.
#[derive(Default)]
pub(crate) struct Profile {
    times: BTreeMap<String, (Duration, u32)>,
}

impl Profile {
    pub(crate) fn add(&mut self, instruction: &Instruction, elapsed: Duration) {
        let entry = self.times.entry(instruction.label.clone()).or_default();
        entry.0 += elapsed;
        entry.1 += 1;
    }

    /// Lines of `milliseconds, calls, instruction`, longest first.
    pub(crate) fn table(&self) -> String {
        let total: Duration = self.times.values().map(|(time, _)| *time).sum();
        let mut lines: Vec<_> = self.times.iter().collect();
        lines.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
        let mut table = format!("profile: {:.1} ms in instructions", total.as_secs_f64() * 1e3);
        for (label, (time, calls)) in lines {
            let ms = time.as_secs_f64() * 1e3;
            // Writing to a string does not fail.
            let _ = write!(table, "\n{ms:10.2} ms {calls:6} × {label}");
        }
        table
    }
}
