use std::fs::File;

use safetensors::tensor::SafeTensors;

use super::*;
use crate::atomic::tests::FullDisk;

fn checkpoint(step: u64) -> Checkpoint {
    let tensor = |name: &str, format: &str, bytes: Vec<u8>, shape: Vec<usize>| Tensor {
        name: name.into(),
        format: format.into(),
        shape,
        bytes,
    };
    Checkpoint {
        state: State {
            step,
            config: serde_json::json!({"recipe": "unit-fp8", "lr": 0.1}),
            corpus_sha256: "00".into(),
        },
        tensors: vec![
            tensor("a.weight", "E4M3", vec![step as u8; 6], vec![2, 3]),
            tensor("b.moment", "F32", (0..16).collect(), vec![4]),
            tensor("c.odd", "E3M4", vec![9; 5], vec![5]),
            tensor("d.scalar", "BF16", vec![1, 2], vec![]),
        ],
    }
}

fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Checkpoint, Error> {
    state_file::Contents { path, bytes }.checkpoint()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn what_was_saved_is_loaded() {
    let dir = folder();
    let path = checkpoint(12).save(dir.path(), 3).expect("room");
    assert!(path.ends_with("step-0000000012.safetensors"));
    assert_eq!(Checkpoint::load(&path).expect("a whole file"), checkpoint(12));
}

#[test]
fn other_tools_can_read_the_weights() {
    let dir = folder();
    let path = checkpoint(1).save(dir.path(), 3).expect("room");
    let bytes = fs::read(path).expect("the file");
    let file = SafeTensors::deserialize(&bytes).expect("plain safetensors");
    let weight = file.tensor("a.weight").expect("its name");
    assert_eq!((weight.dtype(), weight.shape()), (Dtype::F8_E4M3, &[2, 3][..]));
}

#[test]
fn only_the_newest_are_kept() {
    let dir = folder();
    for step in [5, 10, 15, 20] {
        checkpoint(step).save(dir.path(), 2).expect("room");
    }
    let names: Vec<_> = list(dir.path()).expect("the folder");
    assert_eq!(names.len(), 2);
    assert!(names[0].ends_with(Checkpoint::file_name(15)));
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed() {
    let dir = folder();
    let path = checkpoint(3).save(dir.path(), 1).expect("room");
    let whole = fs::read(&path).expect("the file");
    for index in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[index] ^= 0x10;
        let same = from_bytes(&path, &bytes).is_ok_and(|read| read == checkpoint(3));
        let refused = from_bytes(&path, &bytes).is_err();
        assert!(refused || same, "byte {index} was changed and the result differs unnoticed");
    }
    for length in 0..whole.len() {
        let error = from_bytes(&path, &whole[..length]).expect_err("cut short");
        assert!(matches!(error, Error::CheckpointDamaged { .. }), "{length}: {error}");
    }
}

#[test]
fn the_latest_whole_one_is_found_past_damaged_and_partial_ones() {
    let dir = folder();
    checkpoint(5).save(dir.path(), 9).expect("room");
    let damaged = checkpoint(10).save(dir.path(), 9).expect("room");
    let bytes = fs::read(&damaged).expect("the file");
    fs::write(&damaged, &bytes[..bytes.len() - 3]).expect("room");
    fs::write(dir.path().join("step-0000000015.safetensors.tmp"), "partial").expect("room");
    let (path, found, warnings) = Checkpoint::latest(dir.path()).expect("one is whole");
    assert!(path.ends_with(Checkpoint::file_name(5)));
    assert_eq!(found, checkpoint(5));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("step-0000000010") && warnings[0].contains("damaged"));

    let named = Checkpoint::load(&damaged).expect_err("damaged and named");
    assert!(matches!(named, Error::CheckpointDamaged { .. }));
    assert!(!named.is_usage());

    fs::write(dir.path().join(Checkpoint::file_name(5)), "damaged too").expect("room");
    let none = Checkpoint::latest(dir.path()).expect_err("none is whole").to_string();
    for word in ["none of the 2 checkpoints", "step-0000000010", "best.safetensors"] {
        assert!(none.contains(word), "{word} in {none}");
    }
}

#[test]
fn nothing_there_is_said() {
    let dir = folder();
    let empty = Checkpoint::latest(dir.path()).expect_err("an empty folder");
    assert!(matches!(empty, Error::CheckpointMissing { .. }));
    let missing = Checkpoint::load(&dir.path().join("none")).expect_err("no file");
    assert!(matches!(missing, Error::CheckpointMissing { .. }));
}

#[test]
fn another_version_is_named() {
    let bytes = checkpoint(1).to_bytes().expect("a JSON state");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let at = text.find(r#""onesigma.version":"1""#).expect("the version is in the header");
    let mut newer = bytes;
    newer[at + r#""onesigma.version":""#.len()] = b'7';
    let error = from_bytes(Path::new("x"), &newer).expect_err("version 7");
    assert!(matches!(error, Error::CheckpointVersion { found: 7, expected: VERSION, .. }));
}

#[test]
fn bytes_that_do_not_fit_the_shape_are_refused() {
    let mut wrong = checkpoint(1);
    wrong.tensors[1].shape = vec![5];
    assert!(matches!(wrong.to_bytes(), Err(Error::Setting { .. })));
}

#[test]
fn a_full_disk_leaves_the_previous_checkpoint_whole() {
    let dir = folder();
    checkpoint(5).save(dir.path(), 1).expect("room");
    let bytes = checkpoint(10).to_bytes().expect("a JSON state");
    let path = dir.path().join(Checkpoint::file_name(10));
    let open = |at: &Path| Ok(FullDisk { file: File::create(at)?, room: bytes.len() / 2 });
    let error = atomic::write_with(&path, &bytes, open).expect_err("no room");
    assert!(error.to_string().contains("step-0000000010"), "{error}");
    let (_, found, warnings) = Checkpoint::latest(dir.path()).expect("the previous one");
    assert_eq!((found, warnings.len()), (checkpoint(5), 0));
}

#[test]
fn a_mapped_file_lends_its_tensors() {
    let folder = folder();
    let path = checkpoint(3).save(folder.path(), 1).expect("written");
    let file = StateFile::open(&path).expect("a checkpoint");
    let tensors = file.tensors().expect("whole");
    let owned: Vec<Tensor> = tensors.iter().map(StateTensor::to_tensor).collect();
    assert_eq!(owned, checkpoint(3).tensors);
    // They lie in the file's memory, one behind the other, not in copies.
    let first = tensors.iter().map(|tensor| tensor.bytes.as_ptr()).min().expect("four");
    let span = tensors.iter().map(|tensor| tensor.bytes.as_ptr() as usize - first as usize).max();
    assert!(span.expect("four") < 64, "{span:?}");
    // Another checkpoint in its place does not disturb them.
    let other = checkpoint(4).save(folder.path(), 9).expect("written");
    fs::rename(other, &path).expect("moved");
    assert_eq!(tensors[0].bytes, [3; 6]);
}

#[test]
fn files_of_other_tools_are_state_too() {
    let folder = folder();
    let path = folder.path().join("other.safetensors");
    let data: Vec<u8> = (0..8).collect();
    let view = TensorView::new(Dtype::BF16, vec![2, 2], &data).expect("fits");
    let bytes = safetensors::serialize([("w", view)], None).expect("serialised");
    fs::write(&path, &bytes).expect("written");
    let file = StateFile::open(&path).expect("safetensors");
    let tensors = file.tensors().expect("known types");
    assert_eq!((&tensors[0].format[..], &tensors[0].shape[..]), ("BF16", &[2, 2][..]));
    assert_eq!(tensors[0].bytes, data);
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    let error = StateFile::open(&path).expect_err("cut short");
    assert!(matches!(error, Error::CheckpointDamaged { .. }), "{error}");
}
