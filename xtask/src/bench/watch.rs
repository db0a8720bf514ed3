//! Whether a machine was quiet while it was measured.

use std::time::Instant;

/// Clock ticks of the kernel in a second.
const TICKS: f64 = 100.0;

/// Processors that can be used.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// Watches how much of the machine other processes use.
pub struct Watch {
    pid: u32,
    start: Instant,
    busy: f64,
    own: f64,
}

impl Watch {
    /// Starts watching; `pid` is the process that is measured.
    pub fn new(pid: u32) -> Self {
        Self { pid, start: Instant::now(), busy: busy_seconds(), own: process_seconds(pid) }
    }

    /// Processors that the measured process used since, on average.
    pub fn used(&self) -> f64 {
        (process_seconds(self.pid) - self.own) / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Part of the machine that others used since, from 0 to 1.
    pub fn others(&self) -> f64 {
        let busy = busy_seconds() - self.busy;
        let own = process_seconds(self.pid) - self.own;
        let whole = self.start.elapsed().as_secs_f64() * processors() as f64;
        ((busy - own) / whole).clamp(0.0, 1.0)
    }
}

/// Seconds that all processors together have worked, or were taken away.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    [0, 1, 2, 5, 6, 7].iter().filter_map(|&at| ticks.get(at)).sum::<f64>() / TICKS
}

fn process_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold spaces; utime and stime are the 12th and 13th field after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS
}
