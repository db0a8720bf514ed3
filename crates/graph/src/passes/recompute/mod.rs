//! Recomputation: makes a program fit a budget of memory by forgetting tensors and making them
//! again.
//!
//! A tensor that is made again comes from the same op, the same operands and the same random
//! stream, so every result keeps its bits. What is forgotten is chosen to cost the least time for
//! the bytes it frees (`simulate`); after that every repetition that is not needed to keep the
//! budget is taken back, dearest first. Nodes that free memory are run first ([`hoist`]), which
//! costs nothing.

mod emit;
mod simulate;

use super::hoist::hoist;
use super::memory_plan::{place_slots, plan_entry};
use super::tensors::Tensors;
use crate::{Error, Graph, Module, Node, Place, Program, ProgramEntry, Result};
use simulate::{Limits, Walk, Weights};

/// A step may take this many times as long as without recomputation; a budget that needs more is
/// refused.
const MOST_TIMES: f64 = 8.0;

/// Weights that are tried, and the cheapest outcome taken.
const WEIGHTS: [Weights; 8] = {
    const fn weights(size: f64, distance: f64) -> Weights {
        Weights { size, distance }
    }
    [
        weights(1.0, 0.0),
        weights(1.0, 0.5),
        weights(1.0, 1.0),
        weights(1.0, 2.0),
        weights(0.5, 0.5),
        weights(0.5, 1.0),
        weights(0.0, 0.0),
        weights(0.0, 1.0),
    ]
};

/// Outcomes that are improved before the cheapest is taken.
const IMPROVED: usize = 3;

/// Names of repeated nodes begin so.
const REPEATED: &str = "again(";

fn repeated_name(name: &str) -> String {
    if name.starts_with(REPEATED) { name.to_owned() } else { format!("{REPEATED}{name})") }
}

/// Whether a node repeats another one, by its name.
pub fn is_repeated(node: &Node) -> bool {
    node.name.starts_with(REPEATED)
}

/// What fitting changed in an entry.
#[derive(Clone, PartialEq, Debug)]
pub struct EntryFit {
    /// Name of the entry.
    pub entry: String,
    /// Bytes of its temporary tensors before and after.
    pub temporary_bytes: [usize; 2],
    /// Nodes that run again.
    pub repeated: usize,
    /// Seconds of the entry before, by the cost model that was given.
    pub seconds: f64,
    /// Seconds that the repetitions take.
    pub repeated_seconds: f64,
}

/// A program that fits its budget.
#[derive(Clone, PartialEq, Debug)]
pub struct Fitted {
    /// The program; slots and entries have the ids that they had.
    pub program: Program,
    /// What changed, entry by entry; entries that fitted are left out.
    pub entries: Vec<EntryFit>,
}

/// Makes the arena of a program at most `budget` bytes. `seconds` says what a node costs.
///
/// # Errors
/// [`Error::Memory`] if recomputation does not reach the budget, with the least that it reaches.
pub fn fit(
    program: &Program,
    budget: usize,
    seconds: &dyn Fn(&Graph, &Node) -> f64,
) -> Result<Fitted> {
    let (places, slot_bytes) = place_slots(program.slots());
    let room = budget.saturating_sub(slot_bytes);
    let mut fits = Vec::new();
    // The least bytes of the entry that misses the budget by most.
    let mut short: Option<(usize, &str)> = (slot_bytes > budget).then_some((0, "any"));
    let mut module = Module::of(program);
    for (index, ProgramEntry { name, graph, temporary_bytes, .. }) in
        program.entries().iter().enumerate()
    {
        if *temporary_bytes <= room {
            continue;
        }
        let graph = hoist(graph);
        let search = Search::new(&graph, &places, slot_bytes, seconds);
        let Some(found) = search.fit(room) else {
            let least = search.least();
            if short.is_none_or(|(bytes, _)| bytes < least) {
                short = Some((least, name));
            }
            continue;
        };
        let (repeated, repeated_seconds) = search.repeated(&found.schedule);
        fits.push(EntryFit {
            entry: name.clone(),
            temporary_bytes: [*temporary_bytes, found.planned.temporary_bytes],
            repeated,
            seconds: search.total,
            repeated_seconds,
        });
        module.replace(index, found.planned.graph);
    }
    if let Some((least, entry)) = short {
        return Err(Error::Memory {
            budget_bytes: budget,
            least_bytes: slot_bytes.saturating_add(least),
            slot_bytes,
            entry: entry.to_owned(),
        });
    }
    Ok(Fitted { program: Program::new(module)?, entries: fits })
}

/// A schedule with its plan.
struct Found {
    schedule: Vec<usize>,
    seconds: f64,
    planned: ProgramEntry,
}

impl Found {
    fn fits(&self, room: usize) -> bool {
        self.planned.temporary_bytes <= room
    }
}

/// The search for the cheapest schedule of one entry.
struct Search<'a> {
    graph: &'a Graph,
    tensors: Tensors,
    dependents: Vec<Vec<usize>>,
    seconds: Vec<f64>,
    /// Seconds of all nodes together.
    total: f64,
    places: &'a [Place],
    base: usize,
}

impl<'a> Search<'a> {
    fn new(
        graph: &'a Graph,
        places: &'a [Place],
        base: usize,
        seconds: &dyn Fn(&Graph, &Node) -> f64,
    ) -> Self {
        let tensors = Tensors::new(graph);
        let mut dependents = vec![Vec::new(); tensors.root.len()];
        for (node, operands) in graph.nodes().iter().zip(&tensors.operands) {
            for &operand in operands {
                dependents[operand].extend(node.outputs.iter().map(|output| output.index()));
            }
        }
        let seconds: Vec<f64> = graph.nodes().iter().map(|node| seconds(graph, node)).collect();
        let total = seconds.iter().sum();
        Self { graph, tensors, dependents, seconds, total, places, base }
    }

    fn repeated(&self, schedule: &[usize]) -> (usize, f64) {
        emit::repeated(schedule, &self.seconds)
    }

    fn planned(&self, schedule: Vec<usize>) -> Found {
        let graph = emit::emit(self.graph, &schedule);
        let planned = plan_entry(String::new(), graph, self.places, self.base);
        let (_, seconds) = self.repeated(&schedule);
        Found { planned, seconds, schedule }
    }

    /// The cheapest schedule found whose plan needs at most `room` bytes.
    fn fit(&self, room: usize) -> Option<Found> {
        let plain = self.planned(self.walk(usize::MAX / 2, WEIGHTS[0])?);
        if plain.fits(room) {
            return Some(plain);
        }
        let mut candidates: Vec<Found> =
            WEIGHTS.iter().filter_map(|&weights| self.fit_with(room, weights)).collect();
        candidates.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let improved =
            candidates.into_iter().take(IMPROVED).map(|found| self.improved(found, room));
        improved.min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }

    /// The schedule of the most generous walk whose plan fits. A tensor is free from its last use
    /// on, earlier than the walk forgets it, so the plan may need less than the walk was given; or
    /// a little more, where it has gaps.
    fn fit_with(&self, room: usize, weights: Weights) -> Option<Found> {
        let mut last = Vec::new();
        rungs(room / 2, room.saturating_add(room / 4)).find_map(|bytes| {
            let schedule = self.walk(bytes, weights)?;
            if schedule == last {
                return None;
            }
            last.clone_from(&schedule);
            Some(self.planned(schedule)).filter(|found| found.fits(room))
        })
    }

    fn walk(&self, bytes: usize, weights: Weights) -> Option<Vec<usize>> {
        let Self { graph, tensors, dependents, seconds, .. } = self;
        let walk = Walk { graph, tensors, dependents, seconds };
        let limits = Limits { bytes, seconds: self.total * MOST_TIMES, weights };
        Some(emit::prune(graph, tensors, &walk.schedule(limits)?))
    }

    /// Takes back every repetition without which the plan still fits, dearest first.
    fn improved(&self, mut found: Found, room: usize) -> Found {
        let mut kept: Vec<(usize, usize)> = Vec::new();
        loop {
            let mut count = vec![0_usize; self.seconds.len()];
            let mut candidates = Vec::new();
            for (at, &node) in found.schedule.iter().enumerate() {
                count[node] += 1;
                if count[node] > 1 && !kept.contains(&(node, count[node])) {
                    candidates.push((at, (node, count[node])));
                }
            }
            let dearest = candidates
                .into_iter()
                .max_by(|(_, a), (_, b)| self.seconds[a.0].total_cmp(&self.seconds[b.0]));
            let Some((at, run)) = dearest else { return found };
            let mut schedule = found.schedule.clone();
            schedule.remove(at);
            let without = self.planned(emit::prune(self.graph, &self.tensors, &schedule));
            if without.fits(room) {
                found = without;
            } else {
                kept.push(run);
            }
        }
    }

    /// The least bytes to which [`fit`](Self::fit) gets.
    fn least(&self) -> usize {
        let plain = plan_entry(String::new(), self.graph.clone(), self.places, self.base);
        let mut least = plain.temporary_bytes;
        for weights in WEIGHTS {
            let mut failed = 0;
            for bytes in rungs(0, least) {
                if bytes >= least {
                    continue;
                }
                match self.walk(bytes, weights) {
                    Some(schedule) => {
                        failed = 0;
                        least = least.min(self.planned(schedule).planned.temporary_bytes);
                    }
                    None => failed += 1,
                }
                if failed > 8 {
                    break;
                }
            }
        }
        least
    }
}

/// Limits of walks between two numbers of bytes, largest first, 1.5 % apart. They are the same for
/// every budget, so that a larger budget is never harder to keep.
fn rungs(least: usize, most: usize) -> impl Iterator<Item = usize> {
    const RATIO: f64 = 1.015;
    let rung = |exponent: i32| RATIO.powi(exponent) as usize;
    let last = (most.max(1) as f64).log(RATIO).floor() as i32;
    (0..=last).rev().map(rung).take_while(move |&bytes| bytes >= least.max(1))
}

#[cfg(test)]
mod tests;
