//! Files that are either wholly there or not there at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::Error;

/// A destination that can be told to reach the disk.
pub trait Sink: Write {
    /// Returns once everything written has reached the disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Writes `bytes` to `path` so that a crash at any moment leaves the old file or the new one.
///
/// The bytes go to `path` with `.tmp` added, reach the disk, and are renamed into place; then the
/// folder reaches the disk. After an error the temporary file is gone and `path` is untouched.
///
/// # Errors
/// [`Error::Io`], for example when the disk is full.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_with(path, bytes, |temporary| File::create(temporary))
}

/// As [`write()`], through a destination that the caller opens: how tests fill a disk.
///
/// # Errors
/// As [`write()`].
pub fn write_with<S: Sink>(
    path: &Path,
    bytes: &[u8],
    open: impl FnOnce(&Path) -> io::Result<S>,
) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let result = open(&temporary)
        .and_then(|mut sink| {
            sink.write_all(bytes)?;
            sink.flush()?;
            sink.sync()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = result {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        return Err(Error::io("write", path)(source));
    }
    sync_folder(path)
}

/// Makes the rename itself durable. Only Unix can open a folder as a file.
fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("sync", folder))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    pub(crate) struct FullDisk {
        pub(crate) file: File,
        pub(crate) room: usize,
    }

    impl Write for FullDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = self.file.write(&bytes[..bytes.len().min(self.room)])?;
            self.room -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.file.flush()
        }
    }

    impl Sink for FullDisk {
        fn sync(&mut self) -> io::Result<()> {
            self.file.sync_all()
        }
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("file");
        write(&path, b"old").expect("room");
        write(&path, b"new").expect("room");
        assert_eq!(fs::read(&path).expect("the file"), b"new");
        assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 1);
    }

    #[test]
    fn a_full_disk_keeps_the_old_file_and_removes_the_part() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("file");
        write(&path, b"old").expect("room");
        let open = |at: &Path| Ok(FullDisk { file: File::create(at)?, room: 3 });
        let error = write_with(&path, b"longer than three", open).expect_err("no room");
        assert!(matches!(&error, Error::Io { action: "write", .. }), "{error}");
        assert_eq!(fs::read(&path).expect("the file"), b"old");
        assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 1);
    }
}
