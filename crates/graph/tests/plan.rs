//! The memory plan of random graphs, replayed byte by byte.

mod common;

use common::replay;
use onesigma_graph::{AdamWConfig, DType, Graph, Module, Op, Program, Role, SlotKind};
use proptest::prelude::*;

const N: usize = 24;

/// One random choice: an op and which of the values so far it takes.
#[derive(Clone, Copy, Debug)]
struct Choice {
    op: u8,
    operands: [u16; 4],
}

fn choice() -> impl Strategy<Value = Choice> {
    (0..8_u8, any::<[u16; 4]>()).prop_map(|(op, operands)| Choice { op, operands })
}

/// Six slots of one shape (four states, an input, an output), random nodes, random writes.
fn program(choices: &[Choice], writes: &[(u8, u16)]) -> Result<Program, onesigma_graph::Error> {
    let mut module = Module::new();
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let step = module.step_slot()?;
    let mut slots = Vec::new();
    for n in 0..6 {
        let kind = match n {
            0..4 => SlotKind::State,
            4 => SlotKind::Input,
            _ => SlotKind::Output,
        };
        slots.push(module.slot(&format!("s{n}"), kind, [N], DType::F32, Role::Activation)?);
    }
    let mut graph = Graph::new();
    let mut values = vec![module.read(&mut graph, slots[4])];
    let (lr, step) = (module.read(&mut graph, lr), module.read(&mut graph, step));
    for choice in choices {
        let pick = |n: usize| values[usize::from(choice.operands[n]) % values.len()];
        let new = match choice.op {
            0 | 1 => vec![graph.map(&[pick(0), pick(1)], |x| x[0].clone() - x[1].clone())?.one()?],
            2 => vec![graph.map(&[pick(0)], |x| x[0].exp())?.one()?],
            3 => {
                let wide = graph.reshape(pick(0), [4, N / 4])?;
                let turned = graph.permute(wide, &[1, 0])?;
                vec![graph.reshape(turned, [N])?]
            }
            4 => {
                let inner = graph.reshape(pick(0), [2, N / 2])?;
                vec![graph.reshape(inner, [N])?]
            }
            5 => vec![graph.op(Op::Softmax { mult: 1.0 }, &[pick(0)]).one()?],
            6 => vec![module.read(&mut graph, slots[usize::from(choice.operands[0]) % 5])],
            _ => {
                let config =
                    AdamWConfig { beta1: 0.9, beta2: 0.9, eps: 1.0, decay: 0.0, lr_scale: 1.0 };
                let inputs = [pick(0), pick(1), pick(2), pick(3), lr, step, lr];
                graph.op(Op::AdamW(config), &inputs).all()?
            }
        };
        values.extend(new);
    }
    for &(slot, value) in writes {
        let targets = [0, 1, 2, 3, 5];
        let slot = slots[targets[usize::from(slot) % targets.len()]];
        graph.write(slot, values[usize::from(value) % values.len()]);
    }
    module.entry("main", graph)?;
    Program::new(module)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    #[test]
    fn no_value_is_overwritten_while_it_is_needed(
        choices in proptest::collection::vec(choice(), 1..24),
        writes in proptest::collection::vec(any::<(u8, u16)>(), 1..6),
    ) {
        let program = program(&choices, &writes)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        replay(&program, &program.entries()[0]).map_err(TestCaseError::fail)?;
    }
}
