//! Downloads that continue where they broke off and are checked when they are whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Connections that are tried, each from where the last one ended.
const ATTEMPTS: u32 = 5;

/// What can go wrong with a download.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be reached, or breaks off each time.
    Connection {
        /// What was asked for.
        url: String,
        /// What was said last.
        reason: String,
    },
    /// The server answers with something else than the file.
    Status {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// The file is not the one that was expected.
    Checksum {
        /// What was asked for.
        url: String,
        /// SHA-256 of what came.
        found: String,
        /// SHA-256 that was expected.
        expected: String,
    },
    /// The disk refuses.
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection { url, reason } => write!(
                f,
                "cannot download {url}: {reason}; try again to continue where it broke off"
            ),
            Self::Status { url, status } => {
                write!(f, "cannot download {url}: the server answers {status}; give a `--url`")
            }
            Self::Checksum { url, found, expected } => write!(
                f,
                "{url} is not the file that was expected: its SHA-256 is {found}, not {expected}; \
                 it was removed"
            ),
            Self::Io { path, source } => write!(f, "cannot write {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

/// Result with this module's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Downloads `url` to `path`. What has come is kept as `path` with `.part` added, so that a later
/// call continues; the file gets its name once it is whole and has the SHA-256 `sha256`, in lower
/// case. `progress` is told of the bytes that are there, and of those of the whole if it is known.
///
/// # Errors
/// [`Error`]; only [`Error::Checksum`] removes what has come.
pub fn fetch(
    url: &str,
    path: &Path,
    sha256: Option<&str>,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .build()
        .into();
    // What an earlier call left may be of another file.
    let mut is_stale = size(&part) > 0;
    loop {
        download(&agent, url, &part, progress)?;
        let Some(expected) = sha256 else { break };
        let found = digest(&part).map_err(io_error(&part))?;
        if found == expected {
            break;
        }
        fs::remove_file(&part).map_err(io_error(&part))?;
        if !std::mem::take(&mut is_stale) {
            let (url, expected) = (url.into(), expected.into());
            return Err(Error::Checksum { url, found, expected });
        }
        tracing::warn!(found, "what was there before is of another file: from the start");
    }
    fs::rename(&part, path).map_err(io_error(path))
}

/// As many connections as it takes.
fn download(
    agent: &ureq::Agent,
    url: &str,
    part: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let mut attempt = 1;
    loop {
        let before = size(part);
        match connect(agent, url, part, progress) {
            Err(Error::Connection { reason, .. }) => {
                // A connection that brought something does not count.
                if size(part) <= before {
                    attempt += 1;
                }
                if attempt > ATTEMPTS {
                    return Err(Error::Connection { url: url.into(), reason });
                }
                tracing::warn!(attempt, reason, "the connection broke off");
                std::thread::sleep(Duration::from_millis(100 << attempt));
            }
            other => return other,
        }
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// One connection: appends what is missing.
fn connect(
    agent: &ureq::Agent,
    url: &str,
    part: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let broken = |reason: String| Error::Connection { url: url.into(), reason };
    let mut have = size(part);
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let mut response = request.call().map_err(|error| broken(error.to_string()))?;
    let header = |name: &str| -> Option<String> {
        Some(response.headers().get(name)?.to_str().ok()?.to_owned())
    };
    let (range, length) = (header("content-range"), header("content-length"));
    let total_of_range = range.as_deref().and_then(|range| range.rsplit('/').next()?.parse().ok());
    let total: Option<u64> = match response.status().as_u16() {
        // The whole file, whatever was asked for.
        200 => {
            have = 0;
            length.and_then(|length| length.parse().ok())
        }
        206 if range.as_deref().is_some_and(|r| r.starts_with(&format!("bytes {have}-"))) => {
            total_of_range
        }
        // Nothing is missing.
        416 if total_of_range == Some(have) => return Ok(()),
        // What is here is longer than the file, or the server gives another part: start over.
        206 | 416 if have > 0 => {
            fs::remove_file(part).map_err(io_error(part))?;
            return connect(agent, url, part, progress);
        }
        status => return Err(Error::Status { url: url.into(), status }),
    };
    let mut options = OpenOptions::new();
    let options = match have {
        0 => options.create(true).write(true).truncate(true),
        _ => options.append(true),
    };
    let mut file = options.open(part).map_err(io_error(part))?;
    let mut body = response.body_mut().as_reader();
    let mut block = vec![0; 1 << 16];
    progress(have, total);
    let so_far = |have: u64| match total {
        Some(total) => format!("after {have} of {total} bytes"),
        None => format!("after {have} bytes"),
    };
    loop {
        let read = body.read(&mut block);
        let count = read.map_err(|error| broken(format!("{error} {}", so_far(have))))?;
        if count == 0 {
            break;
        }
        file.write_all(&block[..count]).map_err(io_error(part))?;
        have += count as u64;
        progress(have, total);
    }
    match total {
        Some(total) if have < total => Err(broken(format!("it ended {}", so_far(have)))),
        _ => file.sync_all().map_err(io_error(part)),
    }
}

/// SHA-256 of a file, in lower case.
///
/// # Errors
/// Those of reading.
pub fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut block = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            break;
        }
        digest.update(&block[..count]);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
