//! Logs of what happens within: on standard error, or in a file while the terminal shows a
//! dashboard.

use std::fs::File;
use std::io::{self, Write};
#[cfg(feature = "tui")]
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The file, while there is one.
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Starts logging: as `ONESIGMA_LOG` says, or by how often `-v` was given.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("ONESIGMA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Writer).init();
}

/// Sends logs to a file from now on, or back to standard error.
#[cfg(feature = "tui")]
pub fn send_to(path: Option<&Path>) -> io::Result<()> {
    let file = path.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
    *FILE.lock().unwrap_or_else(PoisonError::into_inner) = file;
    Ok(())
}

/// Writes to where logs go at the moment.
struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *FILE.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut *FILE.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.flush(),
            None => io::stderr().flush(),
        }
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}
