//! Where the time of a run went: spans as an engine recorded them, beside what each op costs at
//! least on the device.

use crate::null::{Device, NullBackend, OpCost};
use crate::{Result, Span};
use onesigma_graph::{EntryId, Program};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One line of the table: an op with its sizes, in all layers and steps.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Line {
    /// Op, attributes, operands and results.
    pub label: String,
    /// How often it ran.
    pub calls: usize,
    /// Time in all calls, in seconds.
    pub seconds: f64,
    /// Arithmetic operations in all calls.
    pub flops: f64,
    /// Bytes of operands and results in all calls.
    pub bytes: f64,
    /// The least time that the device's rates allow, in seconds, if they are known.
    pub limit_seconds: Option<f64>,
}

/// The spans of a program's entries.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile<'a> {
    program: &'a Program,
    spans: &'a [Span],
    /// Cost of every node of every entry.
    costs: Vec<Vec<OpCost>>,
    limits: bool,
}

impl<'a> Profile<'a> {
    /// `limits` describes what the device can do; without it the table has no fractions.
    ///
    /// # Errors
    /// None for a program that was validated.
    pub fn new(program: &'a Program, spans: &'a [Span], limits: Option<&Device>) -> Result<Self> {
        let device = limits.cloned().unwrap_or_else(|| Device::server_core(0));
        let null = NullBackend::new(device);
        let entries = 0..program.entries().len();
        let costs = entries
            .map(|entry| Ok(null.cost(program, EntryId::new(entry))?.ops))
            .collect::<Result<_>>()?;
        Ok(Self { program, spans, costs, limits: limits.is_some() })
    }

    fn cost(&self, span: &Span) -> Option<&OpCost> {
        self.costs.get(span.entry.index())?.get(span.node)
    }

    fn label(&self, span: &Span) -> Option<String> {
        let graph = &self.program.entries().get(span.entry.index())?.graph;
        let node = graph.nodes().get(span.node)?;
        let values = node.inputs.iter().chain(&node.outputs);
        let values: Vec<String> = values.map(|&id| graph.value(id).describe()).collect();
        Some(format!("{} {} {}", node.op.name(), node.op.attributes(), values.join(", ")))
    }

    /// Ops by their time, longest first.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines: BTreeMap<String, Line> = BTreeMap::new();
        for span in self.spans {
            let (Some(label), Some(cost)) = (self.label(span), self.cost(span)) else { continue };
            let line = lines.entry(label.clone()).or_insert_with(|| Line {
                label,
                calls: 0,
                seconds: 0.0,
                flops: 0.0,
                bytes: 0.0,
                limit_seconds: self.limits.then_some(0.0),
            });
            line.calls += 1;
            line.seconds += span.elapsed.as_secs_f64();
            line.flops += cost.flops;
            line.bytes += cost.bytes;
            line.limit_seconds = line.limit_seconds.map(|limit| limit + cost.seconds);
        }
        let mut lines: Vec<Line> = lines.into_values().collect();
        lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        lines
    }

    /// The table as text: milliseconds, share of the whole, calls, rates and fraction of the limit.
    pub fn table(&self) -> String {
        let lines = self.lines();
        let total: f64 = lines.iter().map(|line| line.seconds).sum();
        let mut text = format!(
            "{:>10} {:>6} {:>6} {:>9} {:>8} {:>6}  op\n",
            "ms", "share", "calls", "GFLOP/s", "GB/s", "limit"
        );
        for line in &lines {
            let seconds = line.seconds.max(1e-12);
            let limit = line
                .limit_seconds
                .map_or("-".to_owned(), |limit| format!("{:.0} %", 100.0 * limit / seconds));
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:>10.3} {:>4.1} % {:>6} {:>9.1} {:>8.2} {limit:>6}  {}",
                line.seconds * 1e3,
                100.0 * line.seconds / total.max(1e-12),
                line.calls,
                line.flops / seconds / 1e9,
                line.bytes / seconds / 1e9,
                line.label,
            );
        }
        let _ = writeln!(text, "{:>10.3} ms in {} spans", total * 1e3, self.spans.len());
        text
    }

    /// The spans in the trace event format (JSON), which Perfetto and `chrome://tracing` open; the
    /// [`lines`](Self::lines) of the table stand beside them, as `ops`.
    pub fn trace(&self) -> String {
        let mut events = Vec::with_capacity(self.spans.len());
        for span in self.spans {
            let (Some(label), Some(cost)) = (self.label(span), self.cost(span)) else { continue };
            let seconds = span.elapsed.as_secs_f64();
            let mut arguments = serde_json::json!({
                "op": label,
                "flops": cost.flops,
                "bytes": cost.bytes,
            });
            if self.limits {
                arguments["fraction_of_limit"] = (cost.seconds / seconds.max(1e-12)).into();
            }
            events.push(serde_json::json!({
                "name": cost.node,
                "cat": cost.op,
                "ph": "X",
                "ts": span.start.as_secs_f64() * 1e6,
                "dur": seconds * 1e6,
                "pid": 1,
                "tid": span.entry.index(),
                "args": arguments,
            }));
        }
        for (index, entry) in self.program.entries().iter().enumerate() {
            events.push(serde_json::json!({
                "name": "thread_name", "ph": "M", "pid": 1, "tid": index,
                "args": {"name": entry.name},
            }));
        }
        serde_json::json!({
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "ops": self.lines(),
        })
        .to_string()
    }
}
