//! Program files: what is written is read, what is damaged or hostile is refused.

use onesigma_format::Format;
use onesigma_graph::file::Description;
use onesigma_graph::{
    AdamWConfig, DType, Distribution, Error, Graph, Module, Op, Program, ReduceKind, Role, SlotKind,
};
use proptest::prelude::*;

/// A program with every kind of instruction that carries lengths, axes, ids or expressions.
fn program() -> Result<Program, Error> {
    let mut module = Module::new();
    module.seed_slot()?;
    let step = module.step_slot()?;
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let ids = module.slot("ids", SlotKind::Input, [3], DType::U32, Role::Data)?;
    let w = module.slot("w", SlotKind::State, [4, 8], DType::F32, Role::MasterWeight)?;
    let m = module.slot("m", SlotKind::State, [4, 8], DType::F32, Role::FirstMoment)?;
    let v = module.slot("v", SlotKind::State, [4, 8], DType::F32, Role::SecondMoment)?;
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut graph = Graph::new();
    let [step, lr, ids, w_old, m_old, v_old] =
        [step, lr, ids, w, m, v].map(|slot| module.read(&mut graph, slot));
    let rows = graph.op(Op::Gather, &[w_old, ids]).one()?; // [3, 8]
    let e4m3 = DType::Float(Format::E4M3);
    let rows = graph.op(Op::Cast { to: e4m3 }, &[rows]).one()?;
    let distribution = Distribution::Normal { mean: 0.0, std: 1.0 };
    let noise = graph.op(Op::Random { distribution, shape: [3, 8].into() }, &[]).one()?;
    let sum = graph.map(&[rows, noise], |x| x[0].clone() + x[1].tanh())?.alpha(0.7).one()?;
    let turned = graph.permute(sum, &[1, 0])?; // [8, 3]
    let product = graph
        .op(Op::MatMul { transpose_left: false, transpose_right: false }, &[sum, turned])
        .one()?; // [3, 3]
    let half = graph.op(Op::Slice { axis: 1, start: 1, len: 2 }, &[product]).one()?;
    let both = graph.op(Op::Concat { axis: 1 }, &[half, product]).one()?; // [3, 5]
    let normal = graph.op(Op::Softmax { mult: 1.0 }, &[both]).one()?;
    let loss =
        graph.reduce(ReduceKind::Sum, &[normal], &[0, 1], false, |y| y[0].square())?.one()?;
    let gradient = graph.op(Op::ScatterAdd { rows: 4 }, &[sum, ids]).one()?;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.0, lr_scale: 1.0 };
    let inputs = [w_old, gradient, m_old, v_old, lr, step, lr];
    let updated = graph.op(Op::AdamW(config), &inputs).all()?;
    for (slot, value) in [w, m, v].into_iter().zip(updated) {
        graph.write(slot, value);
    }
    graph.write(loss_slot, loss);
    module.entry("train_step", graph)?;
    Program::new(module)
}

fn description() -> Description {
    Description::from([("recipe".to_owned(), "unit-fp8".to_owned())])
}

/// Puts the right checksum over changed content, so that the change reaches the decoder.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes[28..]).to_le_bytes();
    bytes[24..28].copy_from_slice(&checksum);
    bytes
}

fn reason(bytes: &[u8]) -> String {
    match Program::from_bytes(bytes) {
        Err(Error::InvalidProgram { reason }) => reason,
        other => format!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read() -> Result<(), Error> {
    let program = program()?;
    let bytes = program.to_bytes(&description())?;
    assert_eq!(Program::from_bytes(&bytes)?, (program, description()));
    Ok(())
}

#[test]
fn every_cut_is_refused() -> Result<(), Error> {
    let bytes = program()?.to_bytes(&description())?;
    for length in 0..bytes.len() {
        assert!(Program::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(reason(&longer).contains("cut or extended"), "{}", reason(&longer));
    Ok(())
}

#[test]
fn every_flipped_bit_is_refused() -> Result<(), Error> {
    let bytes = program()?.to_bytes(&description())?;
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Program::from_bytes(&damaged).is_err(), "bit {bit}");
    }
    Ok(())
}

#[test]
fn messages_name_what_is_wrong() -> Result<(), Error> {
    let bytes = program()?.to_bytes(&description())?;
    assert!(reason(b"PK").contains("no program file"));
    assert!(reason(&[b'x'; 100]).contains("does not begin with"));
    let mut newer = bytes.clone();
    newer[8] += 1;
    assert!(reason(&newer).contains("compile the program again"), "{}", reason(&newer));
    let mut damaged = bytes.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    assert!(reason(&damaged).contains("checksum"), "{}", reason(&damaged));
    Ok(())
}

#[test]
fn lengths_beyond_the_file_allocate_nothing() -> Result<(), Error> {
    let bytes = program()?.to_bytes(&Description::new())?;
    // Wherever a length stands, one of 2^60 elements.
    for at in 30..bytes.len() {
        let mut hostile = bytes[..at].to_vec();
        hostile.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        hostile.extend(&bytes[at..]);
        let program_bytes = (hostile.len() - 30) as u64;
        hostile[16..24].copy_from_slice(&program_bytes.to_le_bytes());
        assert!(Program::from_bytes(&sealed(hostile)).is_err(), "at {at}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Changes that the checksum does not catch: an error, or a program that is valid again.
    #[test]
    fn hostile_changes_never_pass_validation_unseen(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = program().expect("valid").to_bytes(&Description::new()).expect("short");
        for (at, byte) in changes {
            let at = 30 + at.index(bytes.len() - 30);
            bytes[at] = byte;
        }
        if let Ok((program, _)) = Program::from_bytes(&sealed(bytes)) {
            prop_assert!(program.validate().is_ok());
            // What people see of it works too.
            let _ = onesigma_graph::print::program_text(&program);
        }
    }
}
