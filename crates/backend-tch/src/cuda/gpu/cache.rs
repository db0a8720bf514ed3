//! Machine code of kernels, kept on disk from process to process: a training step has about a
//! hundred kernels, and compiling them takes a core minutes.
//!
//! The folder is `ONESIGMA_CACHE`, else `onesigma` in the user's cache folder; an empty
//! `ONESIGMA_CACHE` keeps nothing. A file that cannot be read or written is as good as none.

use std::ffi::c_char;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where code is kept, if anywhere.
pub(crate) fn folder() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let root = match from("ONESIGMA_CACHE") {
        Some(folder) if folder.as_os_str().is_empty() => return None,
        Some(folder) => folder,
        None => from("XDG_CACHE_HOME")
            .filter(|folder| folder.is_absolute())
            .or_else(|| from("HOME").map(|home| home.join(".cache")))?
            .join("onesigma"),
    };
    Some(root.join("kernels"))
}

/// The name of what a source compiles to, with everything that decides about the result.
pub(crate) fn name(compiler: (i32, i32), options: &[String], source: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{compiler:?} {options:?}\n"));
    hash.update(source);
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hash}.cubin")
}

/// What was kept.
pub(crate) fn load(folder: &Path, name: &str) -> Option<Vec<c_char>> {
    let bytes = std::fs::read(folder.join(name)).ok()?;
    // What is kept is an ELF file with its own SHA-256 behind it: half a file is none.
    let (image, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    (Sha256::digest(image)[..] == *sum).then(|| image.iter().map(|&byte| byte as c_char).collect())
}

/// Keeps machine code; others see all of it or nothing.
pub(crate) fn store(folder: &Path, name: &str, image: &[c_char]) {
    let mut bytes: Vec<u8> = image.iter().map(|&byte| byte as u8).collect();
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    let part = folder.join(format!("{name}.{}", std::process::id()));
    let kept = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, folder.join(name)));
    if let Err(error) = kept {
        let _ = std::fs::remove_file(&part);
        tracing::debug!(%error, folder = %folder.display(), "a kernel was not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_back_whole_or_not_at_all() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let options = ["-O".to_owned()];
        let name = |source: &str| name((13, 0), &options, source);
        let image: Vec<c_char> = (0..100).collect();
        assert_eq!(load(folder.path(), &name("a")), None);
        store(folder.path(), &name("a"), &image);
        assert_eq!(load(folder.path(), &name("a")), Some(image));
        assert_eq!(load(folder.path(), &name("b")), None);
        let file = folder.path().join(name("a"));
        let bytes = std::fs::read(&file)?;
        for cut in [0, 10, bytes.len() - 1] {
            std::fs::write(&file, &bytes[..cut])?;
            assert_eq!(load(folder.path(), &name("a")), None, "{cut} bytes");
        }
        Ok(())
    }
}
