//! Which element-wise ops run in one kernel: an op joins the kernel that makes its operands, or one
//! that reads them, if everything else it reads is there by then.

use crate::ir::{Access, Element, Entry, TensorId, Work};

/// How far back a kernel is looked for that shares an operand.
const NEAR: usize = 6;

/// Work in order, as it is lowered.
pub(crate) struct Fusion {
    pub entry: Entry,
    bindings: usize,
    /// The work that makes each tensor.
    made_by: Vec<Option<usize>>,
}

impl Fusion {
    /// `bindings` is the most that a kernel may have.
    pub(crate) fn new(bindings: usize) -> Self {
        Self { entry: Entry::default(), bindings, made_by: Vec::new() }
    }

    /// The work, in order.
    pub(crate) fn finish(self) -> Entry {
        self.entry
    }

    fn made(&self, tensor: TensorId) -> Option<usize> {
        self.made_by.get(tensor).copied().flatten()
    }

    fn settle(&mut self, made: &[TensorId], at: usize) {
        for &tensor in made {
            if self.made_by.len() <= tensor {
                self.made_by.resize(tensor + 1, None);
            }
            self.made_by[tensor] = Some(at);
        }
    }

    /// Appends work, or lets it join what is there.
    pub(crate) fn push(&mut self, work: Work, name: &str) {
        if let Work::Group(elements) = &work
            && let [element] = &elements[..]
            && let Some(home) = self.home(element)
        {
            let (element, out) = (element.clone(), element.out);
            if let Work::Group(elements) = &mut self.entry.work[home] {
                elements.push(element);
            }
            let names = &mut self.entry.names[home];
            if !names.ends_with(name) {
                names.push_str(" + ");
                names.push_str(name);
            }
            self.settle(&[out], home);
            return;
        }
        let made = work.makes();
        self.entry.work.push(work);
        self.entry.names.push(name.to_owned());
        self.settle(&made, self.entry.work.len() - 1);
    }

    /// The group that an element-wise op joins.
    fn home(&self, element: &Element) -> Option<usize> {
        let reads = reads_of(element);
        let latest = reads.iter().filter_map(|&tensor| self.made(tensor)).max();
        if let Some(latest) = latest
            && self.can_join(element, latest)
        {
            return Some(latest);
        }
        let from = latest.map_or(0, |at| at + 1).max(self.entry.work.len().saturating_sub(NEAR));
        (from..self.entry.work.len()).rev().find(|&at| {
            let known = self.entry.work[at].reads();
            let shares = element
                .operands
                .iter()
                .any(|operand| operand.is_full() && known.contains(&operand.tensor));
            shares && self.can_join(element, at)
        })
    }

    /// Whether an op can run in a group: the same elements, what it reads of the group it reads
    /// element by element, and the rest is there before.
    fn can_join(&self, element: &Element, at: usize) -> bool {
        let Work::Group(elements) = &self.entry.work[at] else { return false };
        let numel = |tensor: TensorId| self.entry.tensors[tensor].numel;
        if numel(elements[0].out) != numel(element.out) {
            return false;
        }
        for operand in &element.operands {
            let made = self.made(operand.tensor);
            if made > Some(at) || (made == Some(at) && !operand.is_full()) {
                return false;
            }
            if let Access::Rows { ids, .. } = operand.access
                && self.made(ids) >= Some(at)
            {
                return false;
            }
        }
        let mut joined = elements.clone();
        joined.push(element.clone());
        let random = if joined.iter().any(Element::draws) { 2 } else { 0 };
        let work = Work::Group(joined);
        work.reads().len() + work.makes().len() + random <= self.bindings
    }
}

fn reads_of(element: &Element) -> Vec<TensorId> {
    let mut reads: Vec<TensorId> = Vec::new();
    for operand in &element.operands {
        if let Access::Rows { ids, .. } = operand.access {
            reads.push(ids);
        }
        reads.push(operand.tensor);
    }
    reads
}
